"""Prints the backbones: `python -m fer_jax.models`."""

from collections.abc import Sequence

from fer_jax import compilation, models
from fer_jax.arguments import Parser
from fer_jax.errors import exit_on_input_error


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: a table of the backbones."""
    parser = Parser(
        "python -m fer_jax.models",
        description="Prints the backbones with their input size, parameters and cost.",
    )
    with exit_on_input_error():
        parser.parse_args(arguments)
        compilation.check_device()
        _print_table()


def _print_table() -> None:
    row = "{:<10} {:>6} {:>17} {:>21} {:>13}"
    print(row.format("backbone", "input", "total parameters", "learn (last 4 layers)", "GFLOP/image"))
    for name in models.BACKBONES:
        module = models.build(name)
        layers = models.trace_layers(module)
        total = sum(layer.parameters for layer in layers)
        learnable = sum(layer.learnable for layer in layers[-4:])
        gflop = sum(layer.flops for layer in layers) / 1e9
        print(row.format(name, module.image_size, f"{total:,}", f"{learnable:,}", f"{gflop:.3f}"))
    print("Total parameters count the moving statistics of batch normalisation, as Keras does; GFLOP count")
    print("2 per multiply-add of convolutions and dense layers. The last layer is out and no head is added.")


if __name__ == "__main__":
    main()
