"""Words of two tones each, said by speakers of their own pitch, length and loudness."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from edgekd.runner.from_spectrogram import fitted
from edgekd.tasks.sounds import Recordings

RATE = 4000
WORDS = {"low": (300, 300), "high": (1200, 1200), "up": (300, 1200)}
SPEAKERS = {"ann": 1.0, "bob": 0.9, "cid": 1.1, "dee": 1.05, "eve": 0.95}


def said(word: str, speaker: str, take: int) -> np.ndarray:
    rng = np.random.default_rng([list(WORDS).index(word), list(SPEAKERS).index(speaker), take])
    pitch, peak = SPEAKERS[speaker], rng.integers(1000, 12000)
    half = int(rng.integers(350, 450))
    tones = [np.sin(2 * np.pi * hertz * pitch * np.arange(half) / RATE) for hertz in WORDS[word]]
    noise = rng.normal(0, 0.05, 2 * half)
    return np.rint(peak * (np.concatenate(tones) + noise)).clip(-32768, 32767).astype(np.int16)


def npz(path: Path, takes: int = 4, **content: object) -> Path:
    sounds, words, speakers = [], [], []
    for number, word in enumerate(WORDS):
        for speaker in SPEAKERS:
            for take in range(takes):
                sounds.append(said(word, speaker, take))
                words.append(number)
                speakers.append(speaker)
    held = {
        "audio": np.concatenate(sounds),
        "offset": np.cumsum([0, *map(len, sounds)]),
        "label": np.asarray(words),
        "speaker": np.asarray(speakers),
        "classes": np.asarray(list(WORDS)),
        "sample_rate": np.asarray(RATE),
        **content,
    }
    np.savez(path, **{name: array for name, array in held.items() if array is not None})
    return path


def folders(root: Path, names: str = "{speaker}_nohash_{take}.wav", takes: int = 2, rate: int = RATE) -> Path:
    for word in WORDS:
        for speaker in SPEAKERS:
            for take in range(takes):
                path = root / word / names.format(speaker=speaker, take=take)
                path.parent.mkdir(parents=True, exist_ok=True)
                with wave.open(str(path), "wb") as file:
                    file.setnchannels(1)
                    file.setsampwidth(2)
                    file.setframerate(rate)
                    file.writeframes(said(word, speaker, take).tobytes())
    return root


def recordings(takes: int = 3) -> Recordings:
    """All words by all speakers, in memory."""
    spoken = [(word, name, take) for word in WORDS for name in SPEAKERS for take in range(takes)]
    return Recordings(
        name="sine words",
        sounds=np.stack([fitted(said(*one), 800) for one in spoken]),
        labels=np.asarray([list(WORDS).index(word) for word, _, _ in spoken]),
        classes=tuple(WORDS),
        sample_rate=RATE,
        speakers=tuple(name for _, name, _ in spoken),
    )
