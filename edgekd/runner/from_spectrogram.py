"""Sound: read from WAV files, and made into pictures of its pitch over time."""

import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.runner.files import Refusal, one_line

_SOUND_LIMIT_BYTES = 64 << 20
_FULL = 32768.0  # of 16-bit sound
_QUIETEST = 1e-3  # share of full scale: a sound below it is not made louder any more
_CHUNK = 256  # sounds transformed at a time


def prepare(sounds: NDArray[np.int16], spec: Mapping[str, Any] | object) -> NDArray[np.float32]:
    """Turn sounds into the model's input: each at the same loudness, as the logarithm of its mel spectrum.

    Frames of `window` samples, `hop` apart, under a Hann window; their power in `bins` triangles, evenly spaced on
    the mel scale (Davis and Mermelstein 1980; O'Shaughnessy's formula); log10 with `floor` added; normalised.

    Args:
        sounds: (N, samples).
        spec: what `preprocess.json` holds, or an object with the same attributes.

    Returns:
        (N, 1, bins, frames).

    Raises:
        ValueError: the sounds are not of that type or length.

    """
    recipe = spec if isinstance(spec, Mapping) else vars(spec)
    samples, bins, frames, window, hop = (
        int(recipe[name]) for name in ("samples", "bins", "frames", "window", "hop")
    )
    if sounds.dtype != np.int16 or sounds.ndim != 2 or sounds.shape[1] != samples:  # noqa: PLR2004 - (N, samples)
        raise ValueError(f"sounds must be int16 of shape (N, {samples}), not {sounds.dtype} {sounds.shape}")
    pictures = np.empty((len(sounds), 1, bins, frames), np.float32)
    size = 1 << (2 * window - 1).bit_length()  # finer than the narrowest triangle
    triangles = mel_triangles(bins, size, int(recipe["sample_rate"]))
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    for at in range(0, len(sounds), _CHUNK):
        level = _levelled(sounds[at : at + _CHUNK])
        cut = np.lib.stride_tricks.sliding_window_view(level, window, axis=1)[
            :, : (frames - 1) * hop + 1 : hop
        ]
        spectrum = np.fft.rfft(cut * hann, size, axis=2)
        power = np.square(spectrum.real) + np.square(spectrum.imag)  # (n, frames, size / 2 + 1)
        heights = (np.log10(power @ triangles + recipe["floor"]) - recipe["mean"]) / recipe["std"]
        pictures[at : at + _CHUNK, 0] = heights.transpose(0, 2, 1)
    return pictures


def mel_triangles(bins: int, size: int, sample_rate: int) -> NDArray[np.float64]:
    """Return what each frequency of a Fourier transform of `size` adds to each mel bin, (size / 2 + 1, bins)."""
    highest = 2595 * np.log10(1 + sample_rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, highest, bins + 2) / 2595) - 1)  # in Hz
    frequencies = np.arange(size // 2 + 1)[:, None] * sample_rate / size
    rising = (frequencies - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - frequencies) / (corners[2:] - corners[1:-1])
    return np.asarray(np.maximum(0, np.minimum(rising, falling)))


def load(path: Path, spec: Mapping[str, Any]) -> NDArray[np.int16]:
    """Read a WAV file as (1, samples) at the model's sample rate.

    Raises:
        Refusal: it is no WAV file of whole numbers, is empty, or is too large.

    """
    sound, rate = read_wav(path)
    return fitted(resampled(sound, rate, int(spec["sample_rate"])), int(spec["samples"]))[None]


def read_wav(path: Path) -> tuple[NDArray[np.int16], int]:
    """Return the sound of a WAV file, its channels averaged, and its sample rate.

    Raises:
        Refusal: it is no WAV file of whole numbers, is empty, or is too large.

    """
    try:
        if path.stat().st_size > _SOUND_LIMIT_BYTES:
            raise Refusal(f"{path} is larger than {_SOUND_LIMIT_BYTES >> 20} MiB", 2)
        with wave.open(str(path), "rb") as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            content = file.readframes(file.getnframes())
    except (OSError, EOFError, ValueError, wave.Error) as error:
        raise Refusal(f"cannot read the sound {path}: {one_line(error)}", 2) from None
    frames = len(content) // (width * channels)
    if not frames or not 0 < rate <= 768_000 or width > 4:  # noqa: PLR2004 - 32 bits; no recorder is faster
        raise Refusal(f"{path} holds no sound", 2)
    values = _whole_numbers(content[: frames * width * channels], width).reshape(frames, channels)
    return np.rint(values.mean(axis=1)).astype(np.int16), rate


def resampled(sound: NDArray[np.int16], rate: int, wanted: int) -> NDArray[np.int16]:
    """Return a sound at another sample rate, without what the lower of the two rates cannot hold."""
    if rate == wanted:
        return sound
    count = max(1, round(len(sound) * wanted / rate))
    spectrum = np.fft.rfft(sound.astype(np.float64))
    made = np.fft.irfft(spectrum[: count // 2 + 1], count) * (count / len(sound))
    return np.clip(np.rint(made), -_FULL, _FULL - 1).astype(np.int16)


def fitted(sound: NDArray[np.int16], samples: int) -> NDArray[np.int16]:
    """Return a sound of this length: a longer one's stretch of the most energy, a shorter one amid silence."""
    if len(sound) > samples:
        energy = np.concatenate([[0.0], np.cumsum(np.square(sound.astype(np.float64)))])
        start = int(np.argmax(energy[samples:] - energy[:-samples]))
        return sound[start : start + samples]
    before = (samples - len(sound)) // 2
    return np.pad(sound, (before, samples - len(sound) - before))


def _levelled(sounds: NDArray[np.int16]) -> NDArray[np.float64]:
    """Scale each sound to a peak of 1: how loud a word was said does not tell which one it was."""
    level = sounds.astype(np.float64) / _FULL
    return np.asarray(level / np.maximum(np.abs(level).max(axis=1, keepdims=True), _QUIETEST))


def _whole_numbers(content: bytes, width: int) -> NDArray[np.float64]:
    """Return the samples of a WAV file on the scale of 16 bits; those of 8 bits have no sign, all others do."""
    raw = np.frombuffer(content, np.uint8).reshape(-1, width)
    if width == 1:
        return (raw[:, 0].astype(np.float64) - 128) * 256
    whole = np.zeros((len(raw), 4), np.uint8)
    whole[:, 4 - width :] = raw  # little-endian: the high bytes
    return np.asarray(np.minimum(whole.view("<i4")[:, 0] / 65536.0, _FULL - 1))
