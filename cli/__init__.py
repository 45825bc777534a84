"""The command line of landscape, installed as ``landscape_cli``."""
