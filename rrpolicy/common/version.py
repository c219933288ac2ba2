"""The library's version, written down once: the build reads it from here and every archive is stamped with it.
It has no imports, so reading it costs nothing."""

__version__ = "0.1.0"
