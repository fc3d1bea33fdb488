"""The contract of the model, the front end and the trainer. Imports the standard library, msgspec and numpy only."""
