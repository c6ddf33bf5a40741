"""The tests of CPython's test_subprocess that do not pass, and why that is so."""

from __future__ import annotations

REASONS = {
    "nothing of Python runs between fork and exec": (
        "POSIXProcessTestCase.test_close_fds_after_preexec POSIXProcessTestCase.test_preexec"
        " POSIXProcessTestCase.test_preexec_errpipe_does_not_double_close_pipes"
        " POSIXProcessTestCase.test_preexec_exception POSIXProcessTestCase.test_preexec_fork_failure"
        " POSIXProcessTestCase.test_preexec_gc_module_failure POSIXProcessTestCase.test_surrogates_error_message"
    ),
    "ids are Credentials(uid=, gid=, groups=), by number": (
        "POSIXProcessTestCase.test_extra_groups POSIXProcessTestCase.test_group POSIXProcessTestCase.test_user"
    ),
    "every program has a session, and so a process group, of its own": "POSIXProcessTestCase.test_process_group_0",
    "every descriptor is closed but those passed: close_fds=False is never right": (
        "POSIXProcessTestCase.test_close_fds POSIXProcessTestCase.test_pass_fds POSIXProcessTestCase.test_pipe_cloexec"
        " POSIXProcessTestCase.test_pipe_cloexec_real_tools"
    ),
    "signals are always restored": "POSIXProcessTestCase.test_restore_signals",
    "the size of a pipe cannot be asked for": "ProcessTestCase.test_pipesizes",
    "startupinfo is of Windows, and refused by another error": "POSIXProcessTestCase.test_invalid_args",
    "it replaces an inner function of subprocess's own (_execute_child, fork_exec, vfork)": (
        "ProcessTestCase.test__use_vfork ProcessTestCase.test_failed_child_execute_fd_leak ProcessTestCase.test_repr"
        " POSIXProcessTestCase.test_exception_errpipe_bad_data POSIXProcessTestCase.test_exception_errpipe_normal"
    ),
    "it replaces stdin by a mock, which communicate() here does not write through": (
        "POSIXProcessTestCase.test_communicate_BrokenPipeError_stdin_close"
        " POSIXProcessTestCase.test_communicate_BrokenPipeError_stdin_close_with_timeout"
        " POSIXProcessTestCase.test_communicate_BrokenPipeError_stdin_flush"
        " POSIXProcessTestCase.test_communicate_BrokenPipeError_stdin_write"
    ),
    "it waits for the program by its number: a program is nobody's child here": (
        "POSIXProcessTestCase.test_send_signal_race POSIXProcessTestCase.test_stopped"
    ),
    "it looks for the object in a list of subprocess's own: a program that nobody holds ends": (
        "POSIXProcessTestCase.test_leak_fast_process_del_killed POSIXProcessTestCase.test_zombie_fast_process_del"
    ),
}
EXPECTED = {name: reason for reason, names in REASONS.items() for name in names.split()}
