"""Image tools: one interface, checked on the host, carried out for a whole batch on the device."""

from mvg_jax.tools.geometry import FLIP, ROTATE, ZOOM_IN
from mvg_jax.tools.intensity import WINDOW_LEVEL
from mvg_jax.tools.render import Sources, ViewFormat, render_views, stack_sources
from mvg_jax.tools.spec import (
    MAX_VIEWS,
    ImageInfo,
    Registry,
    Tool,
    ToolArgs,
    ToolCall,
    ToolError,
    ToolResult,
    apply_tools,
    observation_text,
    reframe_packed,
    render_packed,
)

__all__ = [
    "MAX_VIEWS", "ImageInfo", "Registry", "Sources", "Tool", "ToolArgs", "ToolCall", "ToolError", "ToolResult",
    "ViewFormat", "apply_tools", "default_registry", "observation_text", "reframe_packed", "render_packed", "render_views",
    "stack_sources",
]  # fmt: skip

_TOOLS = {tool.name: tool for tool in (ZOOM_IN, FLIP, ROTATE, WINDOW_LEVEL)}


def default_registry(names: tuple[str, ...] | None) -> Registry:
    """The built-in tools of these names, in this order; None = all. Raises ValueError for any other name."""
    names = tuple(_TOOLS) if names is None else names
    if unknown := set(names) - set(_TOOLS):
        raise ValueError(f"unknown tools {sorted(unknown)}; there are {sorted(_TOOLS)}")
    return Registry(tuple(_TOOLS[name] for name in names))
