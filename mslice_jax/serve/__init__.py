"""Serve a network whose width follows the load."""
