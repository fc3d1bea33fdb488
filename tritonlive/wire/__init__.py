"""What the model, the front end and the trainer agree on. Imports the standard library, msgspec and numpy only."""
