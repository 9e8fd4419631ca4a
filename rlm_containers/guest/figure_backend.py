"""A backend of matplotlib that shows a figure by saving it to the workspace.

Named to matplotlib by :mod:`rlm_guest.figures`. A figure that has been shown is closed, as it is
where a window shows it and its user closes that.
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
        """Save it under a new name."""
        self.canvas.print_figure(current().next_path(), bbox_inches="tight")

    @classmethod
    def pyplot_show(cls, *args: Any, **kwargs: Any) -> None:
        """What ``plt.show()`` does: show all figures that are open, in their order."""
        for manager in sorted(Gcf.get_all_fig_managers(), key=lambda manager: int(manager.num)):
            manager.show()
            Gcf.destroy(manager)


class FigureCanvas(FigureCanvasAgg):
    """Draws one figure."""

    manager_class = FigureManager
