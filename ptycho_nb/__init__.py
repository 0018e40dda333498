"""Physics-informed neural-network ptychography in notebooks: how few photons can I get away with?

    import ptycho_nb as pt

    scan = pt.load_data("scan.npz")
    image = pt.estimate(scan)  # or pt.reconstruct(scan): with the pretrained network, if unseen counts prefer it

Everything that a first look needs is here. The wings hold the rest, each imports only from those above it in this list:

config, quiet, files, rows, machine, pictures   checked values; files written whole, or left on disk; processors; what values show
physics                  objects, probes, scans; the forward model, photons and their noise
data                     a scan and its checks, other programs' files, simulation
solvers                  the likelihood solver, counts held out, the estimate, positions, LSQML; what they return
network                  generators, training, inference, the pretrained network: the only wing that loads TensorFlow
analysis                 metrics and pictures
runs                     one run of a study (an arm), one folder
diagnosis                what is wrong with a scan or a result, in words
studies                  many experiments, their statistics and reports; how few photons are enough; plans
explorers                widgets for JupyterLab
cli                      the command ptycho-nb
"""
__version__ = "0.1.0"

import importlib

_HOME = {  # where each public name lives; it is imported when it is first used
    "load_data": "data.formats",
    "simulate_halves": "data.simulation",
    "example_scan": "data.simulation",
    "estimate": "solvers.estimate",
    "refine_positions": "solvers.positions",
    "Measurement": "solvers.named",
    "hold_out": "solvers.held_out",
    "amortised": "network.pretrained",
    "train": "network.training",
    "reconstruct": "network.candidates",
    "uncertainty": "network.uncertainty",
    "compare": "analysis.metrics",
    "data_fit": "analysis.metrics",
    "plot_object": "analysis.plots",
    "plot_comparison": "analysis.plots",
    "diagnose": "diagnosis.report",
    "how_few": "studies.how_few",
    "plan": "studies.plan",
    "sweep": "studies.sweep",
    "report": "studies.reports",
    "RawData": "data.scan",
    "Reconstruction": "solvers.result",
    "Geometry": "physics.geometry",
    "SimulationConfig": "config",
    "ModelConfig": "config",
    "TrainingConfig": "config",
    "InferenceConfig": "config",
    "InputError": "config",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'ptycho_nb' has no attribute {name!r}; it offers {', '.join(_HOME)}")
    value = getattr(importlib.import_module(f"ptycho_nb.{_HOME[name]}"), name)
    globals()[name] = value  # found at once from now on
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
