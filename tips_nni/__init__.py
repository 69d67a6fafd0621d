"""Anytime neural networks from timm backbones by topologically important path sampling (TIPS)."""

__version__ = "0.1.0"
__all__ = ["AnytimeModel", "__version__"]


def __getattr__(name: str) -> object:
    """Import `AnytimeModel` when it is asked for, so that the package itself imports at once."""
    if name == "AnytimeModel":
        from tips_nni.elastic import AnytimeModel

        return AnytimeModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
