"""What is in a figure: words, and whether they fit."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text


def words(figure: Figure) -> str:
    """All text of a figure that is shown, a line each."""
    return "\n".join(text.get_text() for text in texts(figure))


def texts(figure: Figure) -> list[Text]:
    """Labels, titles, legends and words in panels; tick labels within their limits."""
    found: list[Text] = [text for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        found += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            found += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [text for text in found if text.get_text() and text.get_visible()]


def clipped(figure: Figure) -> list[str]:
    """Texts that reach beyond the page."""
    renderer, page = FigureCanvasAgg(figure).get_renderer(), figure.bbox
    boxes = [(text, text.get_window_extent(renderer)) for text in texts(figure)]
    return [
        text.get_text()
        for text, box in boxes
        if box.width and not (box.x0 >= -2 and box.y0 >= -2 and box.x1 <= page.x1 + 2 and box.y1 <= page.y1 + 2)
    ]
