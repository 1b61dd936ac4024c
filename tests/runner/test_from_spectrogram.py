from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from edgekd.runner.files import Refusal
from edgekd.runner.from_spectrogram import fitted, load, mel_triangles, prepare, read_wav, resampled
from edgekd.values.preprocess import Spectrogram

RATE = 8000
SPEC = Spectrogram(
    sample_rate=RATE, samples=2000, bins=12, frames=10, window=256, hop=190, floor=1e-6, mean=0.0, std=1.0
)


def tone(hertz: float, samples: int = 2000, peak: int = 8000, rate: int = RATE) -> np.ndarray:
    return np.rint(peak * np.sin(2 * np.pi * hertz * np.arange(samples) / rate)).astype(np.int16)


def write(path: Path, sound: np.ndarray, *, rate: int = RATE, channels: int = 1, width: int = 2) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(sound.tobytes())
    return path


def recipe(**changes: object) -> dict[str, object]:
    return {**vars(SPEC), **changes}


def test_a_higher_tone_lights_a_higher_bin_in_every_frame():
    pictures = prepare(np.stack([tone(300), tone(1000), tone(3000)]), SPEC)
    assert pictures.shape == (3, 1, 12, 10)
    assert pictures.dtype == np.float32
    brightest = pictures[:, 0].argmax(axis=1)
    assert (brightest == brightest[:, :1]).all()
    assert brightest[0, 0] < brightest[1, 0] < brightest[2, 0]


def test_it_is_the_log_mel_power_of_the_definition():
    sound = np.random.default_rng(0).integers(-9000, 9000, (1, 2000), dtype=np.int16)
    made = prepare(sound, recipe(mean=-1.0, std=2.0))
    level = sound[0] / 32768 / (np.abs(sound[0]).max() / 32768)
    hann = np.hanning(257)[:256]
    for frame in (0, 4, 9):
        part = level[frame * 190 : frame * 190 + 256] * hann
        power = np.abs(np.fft.fft(part, 512)[:257]) ** 2
        mel = [2595 * np.log10(1 + hertz / 700) for hertz in (0, 4000)]
        corners = 700 * (10 ** (np.linspace(*mel, 14) / 2595) - 1)
        for number in range(12):
            low, middle, high = corners[number : number + 3]
            weights = np.interp(np.arange(257) * RATE / 512, [low, middle, high], [0, 1, 0])
            expected = (np.log10(weights @ power + 1e-6) + 1) / 2
            assert made[0, 0, number, frame] == pytest.approx(expected, rel=1e-5)


def test_every_bin_hears_something_however_narrow():
    assert (mel_triangles(40, 512, RATE).sum(axis=0) > 0).all()


def test_the_same_word_said_softly_looks_the_same():
    loud = np.rint(tone(700, peak=16000) / 2).astype(np.int16)
    made = prepare(
        np.stack([loud, (loud // 2 * 2).astype(np.int16), np.rint(loud / 8).astype(np.int16)]), SPEC
    )
    assert np.abs(made[0].max() - made[2].max()) < 1e-2


def test_silence_is_the_floor_and_not_a_fault():
    made = prepare(np.zeros((1, 2000), np.int16), SPEC)
    np.testing.assert_allclose(made, -6.0)


def test_a_sound_alone_and_among_others_looks_the_same():
    sounds = np.random.default_rng(1).integers(-9000, 9000, (300, 2000), dtype=np.int16)
    np.testing.assert_array_equal(prepare(sounds, SPEC)[270:271], prepare(sounds[270:271], SPEC))


@pytest.mark.parametrize(
    "sounds", [np.zeros((1, 1999), np.int16), np.zeros((1, 2000)), np.zeros(2000, np.int16)]
)
def test_sounds_of_another_form_are_refused(sounds: np.ndarray):
    with pytest.raises(ValueError, match="int16 of shape"):
        prepare(sounds, SPEC)


def test_a_wav_file_is_read_at_the_models_rate(tmp_path: Path):
    path = write(tmp_path / "a.wav", tone(440, samples=4000, rate=16000), rate=16000)
    np.testing.assert_allclose(load(path, vars(SPEC))[0, 50:-50], tone(440)[50:-50], atol=200)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_width_of_whole_numbers_is_the_same_sound(tmp_path: Path, width: int):
    sound = tone(200).astype(np.int64)
    if width == 1:
        raw = (np.rint(sound / 256) + 128).astype(np.uint8)
    else:
        whole = (sound << 8 * (width - 2)).astype("<i4")
        raw = np.ascontiguousarray(whole.view(np.uint8).reshape(-1, 4)[:, :width])
    found, rate = read_wav(write(tmp_path / "a.wav", raw, width=width))
    assert rate == RATE
    np.testing.assert_allclose(found, sound, atol=128 if width == 1 else 0)


def test_channels_are_averaged(tmp_path: Path):
    both = np.stack([tone(200), np.zeros(2000, np.int16)], axis=1)
    found, _ = read_wav(write(tmp_path / "a.wav", np.ascontiguousarray(both), channels=2))
    np.testing.assert_allclose(found, tone(200) / 2, atol=0.5)


def test_resampling_there_and_back_keeps_a_sound():
    sound = tone(900, samples=1001)
    np.testing.assert_allclose(resampled(resampled(sound, 8000, 44100), 44100, 8000), sound, atol=1)


def test_a_long_sound_is_cut_where_it_is_loud_and_a_short_one_stands_in_the_middle():
    sound = np.concatenate([np.zeros(700, np.int16), tone(500, samples=300), np.zeros(500, np.int16)])
    np.testing.assert_array_equal(np.trim_zeros(fitted(sound, 320)), np.trim_zeros(sound))
    assert fitted(np.ones(4, np.int16), 9).tolist() == [0, 0, 1, 1, 1, 1, 0, 0, 0]


def test_what_is_no_sound_is_refused_in_one_line(tmp_path: Path):
    (tmp_path / "a.wav").write_bytes(b"RIFF of nothing")
    write(tmp_path / "empty.wav", np.empty(0, np.int16))
    for name in ("a.wav", "empty.wav", "none.wav"):
        with pytest.raises(Refusal) as caught:
            load(tmp_path / name, vars(SPEC))
        assert caught.value.exit_code == 2
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
