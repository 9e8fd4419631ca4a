"""A backend for matplotlib that shows a figure by saving it to the workspace.

:mod:`rlm_guest.figures` sets it as the default. A figure is closed after it was shown, as if the
user had closed its window.
"""

from __future__ import annotations

from typing import Any

from matplotlib._pylab_helpers import Gcf
from matplotlib.backend_bases import FigureManagerBase
from matplotlib.backends.backend_agg import FigureCanvasAgg

from .figures import current


class FigureManager(FigureManagerBase):
    """Shows one figure."""

    def show(self) -> None:
        """Save the figure under a new name."""
        self.canvas.print_figure(current().next_path(), bbox_inches="tight")

    @classmethod
    def pyplot_show(cls, *args: Any, **kwargs: Any) -> None:
        """Show all open figures in their order. ``plt.show()`` calls this."""
        for manager in sorted(Gcf.get_all_fig_managers(), key=lambda manager: int(manager.num)):
            manager.show()
            Gcf.destroy(manager)


class FigureCanvas(FigureCanvasAgg):
    """Draws one figure."""

    manager_class = FigureManager
