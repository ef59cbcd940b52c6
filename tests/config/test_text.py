"""Settings and messages in words."""

from runner.config.text import LONGEST_MESSAGE, LONGEST_VALUE, one_line, shortened, visible


def test_nothing_of_a_text_can_command_a_terminal():
    text = "\x1b[31mred\x1b[0m\r\n\x07\x9b1m \u202e\ud800 größe 日本"
    assert visible(text) == r"\x1b[31mred\x1b[0m\r\n\x07\x9b1m \u202e\ud800 größe 日本"
    assert visible("a\nb\x1b", keep="\n") == "a\nb\\x1b"


def test_a_message_repeats_a_part_of_a_long_value():
    with_blanks = "lorem ipsum " * 500
    for value in ("x" * 5000, with_blanks, "a,b," * 2000):
        message = one_line(f"name={value}: it is too long.", [f"name='{value}'"])
        assert message.startswith(f"name={value[:40]}")
        assert message.endswith(": it is too long.")
        assert len(message) < LONGEST_VALUE + 80
    assert "\n" not in one_line("name=a\nb: wrong")
    assert len(one_line("word " * 10_000)) < LONGEST_MESSAGE + 50  # of a value that no word has


def test_a_short_value_stays():
    message = "agc.clip=0: it must lie in (0, 1e+09]."
    assert one_line(message, ["norm=agc", "agc.clip=0"]) == message
    assert shortened("x" * LONGEST_VALUE) == "x" * LONGEST_VALUE
