"""Runnable recipes, one a file: ``python -m experiments.cifar_resnet``."""
