"""What `python -m fer_jax.data.fer2013` prints."""

import pytest

from fer_jax.data import fer2013, sources, splits


def test_the_command_prints_classes_hashes_faults_and_leaks_of_every_split(
    small, write_csv, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("FER_JAX_CACHE", str(tmp_path / "cache"))
    path = write_csv(small, tmp_path / "fer2013.csv")
    fer2013.main([str(path)])
    printed = capsys.readouterr().out
    assert f"source              {path} (csv)" in printed
    assert "duplicates          0 rows are copies of others (210 unique)" in printed
    assert "conflicting labels  0 images" in printed
    assert "blank images        0 " in printed
    for name in splits.NAMES:
        assert f"\nsplit {name}\n" in printed
        for digest in splits.make_split(small, name).sha256.values():
            assert digest in printed
    assert "  happy                 21           3           6          30\n" in printed  # of split paper
    assert "    train and validation         0\n" in printed


def test_the_command_says_what_class_folders_lack(small, write_folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FER_JAX_CACHE", str(tmp_path / "cache"))
    fer2013.main([str(write_folders(small, tmp_path / "faces")), "--split=official"])
    printed = capsys.readouterr().out
    assert "NOTE: class folders carry neither the row order nor the Usage" in printed
    assert "NOTE: official: class folders know only train/ and test/" in printed
    assert "indices into the sorted paths" in printed
    assert "split paper" not in printed


def test_an_argument_that_is_none_ends_with_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as end:
        fer2013.main(["--seed=x"])
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: argument --seed: invalid int value: 'x'\n"


def test_the_command_without_a_path_says_where_it_looked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FER2013", raising=False)
    with pytest.raises(SystemExit) as end:
        fer2013.main([])
    assert end.value.code == 2
    assert "no PATH, $FER2013 not set, and data/ holds none of fer2013.csv" in capsys.readouterr().err


def test_help_lists_the_forms_that_are_read(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as end:
        fer2013.main(["--help"])
    assert end.value.code == 0
    assert sources.PRECEDENCE in capsys.readouterr().out


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_split_takes_is_refused(seed, small, write_csv, tmp_path, capsys):
    path = write_csv(small, tmp_path / "fer2013.csv")
    with pytest.raises(SystemExit) as end:
        fer2013.main([str(path), f"--seed={seed}"])
    assert end.value.code == 2
    assert f"error: split seed {seed}: expected 0 to 4294967295\n" in capsys.readouterr().err


def test_the_real_table_is_the_papers(real):
    table = fer2013.describe_split(real, splits.make_split(real, "paper"))
    assert "  happy              6,292         899       1,798       8,989\n" in table
    assert "  all               25,121       3,589       7,177      35,887\n" in table
