"""What a reader looks for first, from the rows of a run: key figures, and a table for the README."""


def find(rows: list[dict], part: str, case: str, method: str) -> dict | None:
    """The row of this case and method, if the run has it."""
    return next((row for row in rows if (row["part"], row["case"], row["method"]) == (part, case, method)), None)


def probes(rows: list[dict]) -> list[str]:
    """The probes of the quality rows, in their order."""
    return list(dict.fromkeys(row["case"].partition(",")[0] for row in rows if row["part"] == "quality"))


def key_figures(rows: list[dict]) -> list[tuple[str, str]]:
    """What was measured, and the figure with what it is compared with; only what the run has."""
    figures = []

    def compare(what: str, part: str, case: str, methods: dict[str, str], number: str, style: str) -> None:
        by_title = {title: find(rows, part, case, method) for title, method in methods.items()}
        texts = [f"{title} " + ("not reached" if "not reached" in (row.get("note") or "") else f"{row[number]:{style}}")
                 for title, row in by_title.items() if row is not None]
        if texts:
            figures.append((what, ", ".join(texts)))

    for probe in probes(rows):
        against = {"the one call": "the one call", "amortised": "amortised", "with a prior": "estimate, with a prior",
                   "no network": "estimate"}
        for dose in ("1e+03", "1e+04", "1e+05", "1e+09"):
            compare(f"SSIM at {dose} photons, {probe} probe", "quality", f"{probe}, {dose}", against, "ssim", ".4f")
        for kind in ("siemens_star", "random_field"):
            compare(f"SSIM at 1e+04 photons, {probe} probe, {kind}", "quality", f"{probe}, 1e+04, {kind}", against,
                    "ssim", ".4f")
        groups = {f"gridsize {size}": f"residual_unet, gridsize {size}, NLL" for size in (1, 2)}
        compare(f"SSIM at 1e+09 photons, {probe} probe, residual_unet on groups", "quality", f"{probe}, 1e+09", groups,
                "ssim", ".4f")
        to_999 = {"no network": "estimate to SSIM .999", "LSQML (Gaussian)": "LSQML gaussian to SSIM .999",
                  "LSQML (Poisson)": "LSQML poisson to SSIM .999"}
        for number, unit in (("seconds", "s"), ("cpu_seconds", "CPU s")):
            compare(f"{unit} to SSIM .999 at 1e+09 photons, {probe} probe", "quality", f"{probe}, 1e+09", to_999,
                    number, ".2f")
    compare("reconstructed patterns/s, from patterns to object", "speed", "64²", {
        "no network": "estimate, from patterns to object",
        "residual_unet": "reconstruct with residual_unet, gridsize 2, bfloat16",
        "amortised, one split and orientation": "amortised, splits=1, orientations=1",
        "amortised, 4 splits and 8 orientations": "amortised, splits=4, orientations=8"}, "rate", ".0f")
    training = [find(rows, "speed", "64²", f"train {name}, gridsize 2, bfloat16") for name in ("residual_unet", "cnn")]
    if all(training):
        unet, cnn = (row["rate"] for row in training)
        figures.append(("training at gridsize 2, groups/s",
                        f"residual_unet {unet:.0f}, cnn {cnn:.0f}: {unet / cnn:.1f} times"))
    parts = [find(rows, "speed", "64²", name) for name in ("simulate", "stitch")]
    if all(parts):
        seconds = [1000 * row["cpu_seconds"] / (row["rate"] * row["seconds"]) for row in parts]
        figures.append(("CPU s for 1000 patterns", f"simulate {seconds[0]:.2f}, stitch {seconds[1]:.2f}"))
    return figures


def readme_table(rows: list[dict]) -> list[str]:
    """Lines of Markdown: amplitude SSIM of every solver at every dose, both probes in one cell, the best one bold."""
    methods = {"LSQML": "LSQML poisson, 5 epochs", "no network": "estimate", "with a prior": "estimate, with a prior",
               "network": "residual_unet, gridsize 2, NLL", "amortised": "amortised",
               "`pt.reconstruct`": "the one call"}
    lines = [f"| photons per pattern | {' | '.join(methods)} |", "| --- " * (1 + len(methods)) + "|"]
    doses = dict.fromkeys(row["case"].split(", ")[1] for row in rows if row["part"] == "quality")
    for dose in doses:
        cells = {title: [find(rows, "quality", f"{probe}, {dose}", method) for probe in probes(rows)]
                 for title, method in methods.items()}
        best = [max((row["ssim"] for row in column if row is not None), default=None)
                for column in zip(*cells.values(), strict=True)]
        texts = []
        for entries in cells.values():
            shown = [f"{row['ssim']:.3f}" if row else "" for row in entries]
            shown = [f"**{text}**" if row and row["ssim"] > highest - 5e-4 else text
                     for text, row, highest in zip(shown, entries, best, strict=True)]
            texts.append(" / ".join(shown) if any(entries) else "")
        if any(texts):
            lines.append(f"| {float(dose):.0e} | {' | '.join(texts)} |".replace("e+0", "e"))
    return [f"Probes: {' / '.join(probes(rows))}. LSQML is pty-chi's, after five epochs; the network was trained on",
            "the other half of the object, the amortised one on other objects. `pt.reconstruct` chooses among images",
            "without a network, amortised, and smoothed, by counts that none of them has fitted.", "", *lines, "",
            "All that was measured, with seconds and versions: [benchmarks/RESULTS.md](../benchmarks/RESULTS.md)."]
