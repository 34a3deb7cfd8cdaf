"""The figure of groups: error, noise and direction against the number of channel groups.

Run   python -m figures.groups results/groups.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png and .txt (the caption).
"""

import xarray as xr
from matplotlib.lines import Line2D

from fgvar import plot
from fgvar.plot import Look, Sheet, drawing, looks
from figures import command, local_losses
from figures.page import Figures, Page

PAGE = Page("studies/groups.py", local_losses.NEEDED)
ONE, ALL = "block", "block + patch + group"
LINES = {  # scheme, losses → name, look
    ("frozen", ONE): ("frozen", looks.look("frozen")),
    ("LG-BP", ONE): ("LG-BP", looks.look("LG-BP")),
    ("LG-FG-A", ONE): ("LG-FG-A, in one copy", Look(looks.look("LG-FG-A").color, "v", looks.DASHED)),
    ("LG-FG-A", ALL): ("LG-FG-A, replicated", looks.look("LG-FG-A")),
}
LOOKS = dict(LINES.values())


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """Error, relative variance and cosine against groups, side by side; one below the other in one column."""
    panels = sheet.row(3, head=0.55, height=1.5, sharex=not sheet.wide)
    for axes, (name, title) in zip(panels, local_losses.PANELS.items(), strict=True):
        shown = lines(dataset) if name == "error" else lines(dataset).isel(estimator=slice(2, None))
        plot.sweep(shown, x="groups", y=name, ax=axes, legend=False, looks=LOOKS)
        axes.set(xlabel="groups" if sheet.wide or name == "cosine" else "", ylabel=title)
        if name == "error":  # errors lie within two powers of ten
            low, high = float(shown["error_low"].min()) / 1.15, float(shown["error_high"].max()) * 1.15
            axes.set_ylim(low, high)
            drawing.ticks(axes.yaxis, [place for place in (2, 5, 10, 20, 50, 100) if low < place < high])
    sheet.legend([Line2D([], [], label=name, **looks.line_style(look)) for name, look in LOOKS.items()])
    sheet.figure.align_labels()


def lines(dataset: xr.Dataset) -> xr.Dataset:
    """Each scheme with its losses: means over seeds, in bands from the lowest to the highest."""
    each = [local_losses.ranged(dataset.sel(scheme=scheme, losses=losses, drop=True)) for scheme, losses in LINES]
    return xr.concat(each, xr.DataArray(list(LOOKS), dims="estimator", name="estimator"))


@PAGE.caption
def caption(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    get, means = dataset.attrs.get, dataset[["error", "relative_variance"]].mean("seed")
    rates = dataset["best_lr"].sel(scheme="LG-FG-A")
    ours = means.sel(scheme="LG-FG-A", losses=ALL)
    best, ends = ours.isel(groups=int(ours["error"].argmin("groups"))), ours.isel(groups=[0, -1])
    chosen = "; ".join(
        f"{', '.join(f'{r:g}' for r in rates.sel(losses=losses).values)} {words}"
        for losses, words in ((ONE, "in one copy"), (ALL, "replicated"))
    )
    return [
        f"More and more channel groups, on {local_losses.network(dataset)}. A small proxy of Fig. 7 of Ren et al. "
        "2023. Local losses stand at every block, in one copy or replicated over patches and groups.",
        f"Left: test error after {get('config_epochs', '?')} epochs, each at the rate (of {get('config_lr', '?')}) "
        f"with the lowest final training loss; for LG-FG-A from few to many groups {chosen}. "
        + local_losses.MEASURED.format(draws=get("config_draws", "?"), error=float(dataset["cosine_se"].max())),
        f"{local_losses.seeds(dataset, 'bands')} frozen: a frozen trunk under trained heads. The network "
        "changes with its groups: grouped layers of more groups have fewer weights.",
        f"With replicated losses LG-FG-A has an error of {ends['error'][0].item():.1%} with "
        f"{int(ends['groups'][0])} and {ends['error'][1].item():.1%} with {int(ends['groups'][1])} groups, the "
        f"lowest ({best['error'].item():.1%}) with {int(best['groups'])}; relative variance "
        f"{ends['relative_variance'][0].item():.3g} and {ends['relative_variance'][1].item():.3g}.",
    ]


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.groups", __doc__, FIGURES)
