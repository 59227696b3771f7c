"""Runs that tests stream."""

HELLO = b": ok\n"
RETRY = b"retry: 1000\n"
#: Five are promised, and a busy machine has the rest. That the parts of them are short is tested
#: where they are: what is believed of a key, in test_bearer.py, and looks at streams, in
#: test_stream_hub.py.
BROKEN_OFF_SECONDS = 30
#: An answer of 24 KB, for streams of which a test cuts a number of bytes: on a busy machine words
#: are gathered in few events, and short ones would be over before the last cut.
LONG = {"say": f"{'x' * 399} ", "repeat": 60, "delay_ms": 20}
