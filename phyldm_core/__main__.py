"""``python -m phyldm_core`` is the command ``phyldm``."""

from .cli import app

app(prog_name="phyldm")
