"""``python -m data_tools.inspect``: see the data. The commands are in `data_tools.inspect.__main__`."""

if __name__ == "inspect":
    # A Python started in data_tools, or for a file there, finds this package instead of the standard library's.
    import sys
    import sysconfig
    from importlib import util

    spec = util.spec_from_file_location(__name__, f"{sysconfig.get_path('stdlib')}/inspect.py")
    assert spec and spec.loader
    sys.modules[__name__] = util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[__name__])
