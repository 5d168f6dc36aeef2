"""The command line: `rdm ...` or `python -m rdm ...`.

Exit status 0, 2 for a usage or configuration error, 1 for a failure while running, 130 where it was interrupted.
"""

import sys
import warnings
from collections.abc import Sequence

from rdm.app import process
from rdm.cli.parser import parser

INTERRUPTED = 130  # as shells say of a program that Ctrl-C ended, of SIGTERM as well


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors are one line on standard error, `--debug` adds the traceback."""
    options = parser().parse_args(arguments)
    process.keep_freed_memory()
    from rdm.errors import InputError, Interrupted

    try:
        with warnings.catch_warnings(), process.terminated_as_interrupted():
            warnings.showwarning = process.warn
            options.run(options)
            sys.stdout.flush()
        return 0
    except InputError as error:
        return process.fail(error, 2, options.debug)
    except (Interrupted, KeyboardInterrupt) as error:
        return process.fail(str(error) or "interrupted", INTERRUPTED, options.debug)
    except BrokenPipeError as error:
        return 1 if process.nobody_reads() else process.fail(error, 1, options.debug)
    except OSError as error:
        return process.fail(process.of_storage(error), 1, options.debug)
    except ModuleNotFoundError as error:
        return process.fail(process.of_packages(error), 2, options.debug)
    except Exception as error:  # whatever failed while running, in one line
        return process.fail(error, 1, options.debug)


if __name__ == "__main__":
    sys.exit(main())
