"""The parts of `experiments.cifar_speedrun`."""
