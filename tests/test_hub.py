import pytest

from osrm_exp.hub import fetched


def test_what_can_be_had_is_returned():
    assert fetched("owner/here", lambda: 3, "unused") == 3


def test_a_hub_out_of_reach_is_asked_once_and_the_sentence_says_what_to_do():
    asked = []

    def load():
        asked.append(1)
        raise OSError("no connection\nand forty lines more")

    for _ in range(2):
        with pytest.raises(ValueError, match=r"owner/lost .*\(no connection\); use a copy") as told:
            fetched("owner/lost", load, "use a copy")
        assert "\n" not in str(told.value)
    assert len(asked) == 1
