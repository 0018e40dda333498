"""The networks: the only wing that loads a framework, and it does so without the framework's greeting."""
from ..quiet import load_quietly

load_quietly("keras")
