"""Prints the backbones: `python -m fer_jax.models`."""

from fer_jax import freezing, models


def main() -> None:
    row = "{:<10} {:>6} {:>17} {:>21} {:>13}"
    print(row.format("backbone", "input", "total parameters", "learn (last 4 layers)", "GFLOP/image"))
    for name in models.BACKBONES:
        module = models.build(name)
        layers = models.trace_layers(module)
        learning = freezing.learning_layers(tuple(layer.name for layer in layers), "last", last=4)
        total = sum(layer.parameters for layer in layers)
        learnable = sum(layer.learnable for layer in layers if layer.name in learning)
        gflop = sum(layer.flops for layer in layers) / 1e9
        print(row.format(name, module.image_size, f"{total:,}", f"{learnable:,}", f"{gflop:.3f}"))
    print("Total parameters count the moving statistics of batch normalisation, as Keras does; GFLOP count")
    print("2 per multiply-add of convolutions and dense layers. The last layer is out and no head is added.")


if __name__ == "__main__":
    main()
