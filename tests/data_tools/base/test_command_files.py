"""Commands are found by their files, and none is loaded."""

from pathlib import Path

from data_tools.base.command_files import Command, commands_of

_MAIN = '"""Do it.\n\nAnd more."""\n\n\ndef main(argv=None):\n    raise RuntimeError("not run")\n'


def test_modules_and_packages_with_a_main_are_commands(tmp_path: Path) -> None:
    package = tmp_path / "tools"
    (package / "look").mkdir(parents=True)
    (package / "plain").mkdir()
    (package / "build.py").write_text(_MAIN + 'if __package__ in (None, ""):\n    pass\n')
    (package / "helper.py").write_text('"""Helps."""\n\n\ndef other_main(): ...\n')
    (package / "__main__.py").write_text(_MAIN)  # the list itself
    (package / "look" / "__main__.py").write_text(_MAIN.replace("Do it", "Look\nat it"))
    (package / "plain" / "inner.py").write_text(_MAIN)
    assert commands_of([package]) == {
        "build": Command("tools.build", "Do it.", package / "build.py", starts_as_file=True),
        "look": Command("tools.look", "Look at it.", package / "look" / "__main__.py", starts_as_file=False),
    }
