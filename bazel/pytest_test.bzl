"""A py_test target for every pytest file of a package."""

def pytest_tests(files, deps = [], data = []):
    """Defines one target for each file: tests/input/test_x.py is //tests:input/test_x.

    The tests see the project as it lies in the source tree (Bazel's runfiles):
    the libraries in `deps`, the files in `data`, and the directory of the root
    as the working directory.

    Args:
      files: pytest files, usually a glob.
      deps: py_library targets, the same for every test.
      data: files that tests read, the same for every test.
    """
    for file in files:
        native.py_test(
            name = file[:-len(".py")],
            srcs = [file, "//bazel:pytest_main.py"],
            main = "//bazel:pytest_main.py",
            args = ["$(rootpath %s)" % file],
            deps = deps,
            data = data,
            size = "large",
            timeout = "long",
        )
