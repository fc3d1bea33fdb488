"""`tritonlive model-repository`: write a folder for `tritonserver --model-repository`."""

from pathlib import Path
from typing import Annotated

import typer

from tritonlive.launch.config import resolved
from tritonlive.launch.errors import LaunchError
from tritonlive.launch.model_repository import ModelNames, engine_arguments, write_models
from tritonlive.wire.tensor_names import MODEL, VLLM_MODEL

from .stack_options import GROUP, PASS_THROUGH, complain, vllm_arguments

app = typer.Typer()


@app.command(name="model-repository", context_settings=PASS_THROUGH, rich_help_panel=GROUP)
def model_repository(
    context: typer.Context,
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", file_okay=False, help="The repository; created if it is missing.")
    ],
    model: Annotated[
        str, typer.Option("--model", metavar="PATH_OR_REPO", help="Directory or hub id of the checkpoint.")
    ],
    name: Annotated[
        str,
        typer.Option(
            "--name",
            metavar="NAME",
            help="Triton's name of the model: its folder, and the name in Triton's URLs. The front end and trainers "
            f"ask for {MODEL}; Triton's own clients may ask for any name.",
        ),
    ] = MODEL,
    vllm_name: Annotated[
        str | None,
        typer.Option(
            "--vllm-name",
            metavar="NAME",
            help="Triton's name of the model for clients of vllm_backend, whose tensors have no batch dimension. "
            f"[dim]Default: {VLLM_MODEL}, or NAME_{VLLM_MODEL} with another --name[/dim]",
        ),
    ] = None,
) -> None:
    """Write a Triton model repository for [bold]tritonserver --model-repository DIR[/bold].

    It has one model with an engine, and two small ones that share it: vllm_model for clients of Triton's vllm_backend,
    and llm_unary for infer(). A folder can be removed if its model is not wanted.

    Every other argument is vLLM's, in the spelling of [bold]vllm serve[/bold], and goes to DIR/NAME/1/model.json,
    where it can be edited. For several models, call it several times with different names. It never
    overwrites a model.

    tritonserver must find this Python and its packages: [bold]tritonlive triton-env --model-repository DIR[/bold]
    prints the environment and the command for that. TRITONLIVE_ENGINE_ARGS, if it is set, overrides every model.json.

    [bold]Examples[/bold]

        tritonlive model-repository ./repository --model Qwen/Qwen3-0.6B --max-model-len 4096

        tritonlive model-repository ./repository --model ./my-judge --name judge --gpu-memory-utilization 0.4

        eval "$(tritonlive triton-env --model-repository ./repository)"
    """
    arguments = vllm_arguments(context)
    try:
        model = resolved(model)  # tritonserver may run in another directory
        names = ModelNames.of(name, vllm_name)
        written = write_models(directory, names, {"model": model, **engine_arguments(arguments)})
    except LaunchError as error:
        raise typer.Exit(complain(error)) from error
    typer.echo(f"{written} serves {model}; {names.vllm} and {names.unary} take requests for it. Run it with:")
    typer.echo(f'  eval "$(tritonlive triton-env --model-repository {directory})"')
