# Asked of an interpreter, with pins as arguments: what it is and which of them it lacks. Imports none of them.
import importlib.metadata, importlib.util, json, os, sys


def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def present(name):
    return importlib.util.find_spec(name) is not None


def is_met(pin):
    name, wanted = pin.split("==")
    # `2.11.0+cpu` is a build of 2.11.0.
    return (version(name) or "").split("+")[0] == wanted


torch = importlib.util.find_spec("torch")
libtorch = os.path.dirname(torch.origin) if torch and torch.origin else ""
print(json.dumps({
    "minor": sys.version_info[1] if sys.version_info[0] == 3 else 0,
    "version": "{}.{}.{}".format(*sys.version_info),
    "prefix": sys.prefix,
    "unmet": [pin for pin in sys.argv[1:] if not is_met(pin)],
    "torch": libtorch if os.path.isdir(libtorch + "/lib") else None,
    "torch_version": version("torch"),
    "has_pip": present("pip"),
    "can_make_environments": present("venv") and present("ensurepip"),
}))
