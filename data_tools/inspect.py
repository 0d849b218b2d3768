"""``python -m data_tools.inspect``: see the data. The commands are in `inspect_command`."""

if __name__ == "inspect":
    # A Python started in this directory, or for one of its files, looks here first for the standard library's inspect.
    import sys
    import sysconfig
    from importlib import util

    spec = util.spec_from_file_location(__name__, f"{sysconfig.get_path('stdlib')}/inspect.py")
    assert spec and spec.loader
    sys.modules[__name__] = util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[__name__])
elif __name__ == "__main__":
    from data_tools.errors import run_command
    from data_tools.inspect_command import main

    run_command(main)
