"""A deep image prior on the likelihood of the counts, one of the rivals in `rivals.py`.

The object is what an untrained network makes of fixed noise, and its weights follow the gradient of the Poisson
likelihood; counts that are held out say when to stop. D. Ulyanov, A. Vedaldi and V. Lempitsky, "Deep image prior",
CVPR (2018), doi:10.1109/CVPR.2018.00984.
"""
import time
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import ptycho_nb as pt
from ptycho_nb.physics.forward import Layout
from ptycho_nb.physics.noise import intensity_scale
from ptycho_nb.physics.probes import normalise_probe
from ptycho_nb.solvers.held_out import HeldOut
from ptycho_nb.solvers.likelihood import illumination, scan_gradient

CHANNELS, HALVINGS, LEARNING_RATE = 16, 3, 5e-3


def untrained(height: int, width: int, seed: int) -> keras.Model:
    """Halvings and doublings without skips; what comes out is added to an object of ones."""
    keras.utils.set_random_seed(seed)
    image = start = layers.Input((height, width, CHANNELS))
    for side in (CHANNELS, 2 * CHANNELS, 2 * CHANNELS):
        image = layers.Conv2D(side, 3, strides=2, padding="same")(image)
        image = layers.LeakyReLU(0.1)(layers.GroupNormalization(8)(image))
    for side in (2 * CHANNELS, CHANNELS, CHANNELS):
        image = layers.UpSampling2D(interpolation="bilinear")(image)
        image = layers.Conv2D(side, 3, padding="same")(image)
        image = layers.LeakyReLU(0.1)(layers.GroupNormalization(8)(image))
    return keras.Model(start, layers.Conv2D(2, 3, padding="same", kernel_initializer="zeros")(image))


def deep_prior(scan: pt.RawData, held: HeldOut, steps: int, every: int,
               seed: int = 0) -> Iterator[tuple[float, pt.Reconstruction]]:
    """Processor seconds so far, and the object, after every so many steps."""
    began = time.process_time()
    amplitude, layout = held.fitted_amplitude, Layout.around(scan.positions_px, scan.N)
    scale = intensity_scale(amplitude[held.fitted])
    probe = (normalise_probe(scan.probe)[0] * scale).astype(np.complex64)
    height, width = layout.shape[-2:]
    whole = [-(-side // 2**HALVINGS) * 2**HALVINGS for side in (height, width)]
    noise = np.random.default_rng(seed).uniform(0, 0.1, (1, *whole, CHANNELS)).astype(np.float32)
    network, adam = untrained(*whole, seed), keras.optimizers.Adam(LEARNING_RATE)
    network_of = tf.function(network, reduce_retracing=True)

    @tf.function
    def follow(real: tf.Tensor, imag: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            made = network(noise)[0, :height, :width]
        adam.apply(tape.gradient(made, network.trainable_variables, tf.stack([real, imag], axis=-1)),
                   network.trainable_variables)

    def object_now() -> np.ndarray:
        made = network_of(noise)[0, :height, :width].numpy()
        return (1 + made[..., 0] + 1j * made[..., 1]).astype(np.complex64)

    coverage = illumination(probe / scale, layout)[0]
    for step in range(1, steps + 1):
        image = object_now()
        gradient = scan_gradient(image[None], probe, amplitude, layout, held.fitted).objects[0] / scale**2
        follow(gradient.real, gradient.imag)
        if step % every == 0:
            spent = time.process_time() - began
            yield spent, pt.Reconstruction(object=object_now(), coverage=coverage, origin_px=layout.origin_px,
                                           positions_px=scan.positions_px, method="rival",
                                           probe=probe / np.float32(np.sqrt(held.fitted_share)))
            began = time.process_time() - spent
