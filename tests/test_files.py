"""Tests of scripts/files.py: what stands under a name before, during and after writing, and the digest."""

from __future__ import annotations

import os

import pytest

from scripts.files import replacing, sha256


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "new" / "a.csv"
    with replacing(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
    with replacing(path) as temporary:
        temporary.write_text("second")
        assert path.read_text() == "first" and temporary.parent == path.parent
    assert [file.name for file in path.parent.iterdir()] == ["a.csv"] and path.read_text() == "second"


def test_after_an_error_the_old_file_stands_alone(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("old")
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert [file.name for file in tmp_path.iterdir()] == ["a.csv"] and path.read_text() == "old"


def test_links_are_replaced_and_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (tmp_path / "out").mkdir()
    for name in ("a.nii.gz", f".writing-{os.getpid()}.nii.gz"):
        (tmp_path / "out" / name).symlink_to(outside)
    with replacing(tmp_path / "out" / "a.nii.gz", ending=".nii.gz") as temporary:
        temporary.write_text("new")
    assert outside.read_text() == "mine"
    assert not (tmp_path / "out" / "a.nii.gz").is_symlink() and (tmp_path / "out" / "a.nii.gz").read_text() == "new"


def test_digest_is_that_of_the_standard(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")  # the example of FIPS 180-4
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
