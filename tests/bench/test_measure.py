"""The harness, on real processes: memory of a whole tree, failures, kills, order, and what is left in the file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vitrify.bench import records
from vitrify.bench.measure import Case, CaseFailed, measure
from vitrify.core.errors import BadInput, MissingDependency, UsageError
from vitrify.core.progress import Event

psutil = pytest.importorskip("psutil", reason="needs vitrify[bench]")

MB = 1e6
# runs argv[1:] as programs, one inside the other: the last one's text runs in the deepest process
NEST = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]], check=True)"


def python(name: str, text: str, *arguments: str, **options: object) -> Case:
    return Case(name, [sys.executable, "-S", "-c", text, *arguments], **options)


def once(*cases: Case, **options: object) -> list[records.Sample]:
    return measure(cases, **{"rounds": 1, "warmup": 0, **options})


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(path: Path, lines: int = 1) -> list[str]:
    """The lines of a file that other processes write, once there are enough of them."""
    for _ in range(500):
        if path.exists() and path.read_text().count("\n") >= lines:
            return path.read_text().split()
        time.sleep(0.02)
    raise AssertionError(f"{path} was not written")


def test_memory_of_one_process() -> None:
    sample = once(python("a", "import time; x = b'x' * 200_000_000; time.sleep(0.3)"))[0]
    assert sample.tree_rss / MB == pytest.approx(200, rel=0.15)
    assert sample.peak / MB == pytest.approx(200, rel=0.15)
    assert sample.processes == 1
    assert sample.readings >= 3
    assert sample.wall_s > 0.3
    if sys.platform == "linux":
        assert sample.tree_uss is not None
        assert sample.tree_pss is not None
        assert 0 < sample.tree_uss <= sample.tree_pss <= sample.tree_rss


def test_memory_of_descendants_is_added_up() -> None:
    hold = "import time; x = b'x' * 100_000_000; time.sleep(2)"
    text = "import subprocess, sys; x = b'x' * 100_000_000; subprocess.run([sys.executable, '-S', '-c', *sys.argv[1:]])"
    sample = once(python("root", text, NEST, hold))[0]
    assert sample.processes == 3
    assert 200 < sample.tree_rss / MB < 270
    assert sample.peak == sample.tree_rss


def test_a_large_harness_does_not_pass_for_its_case() -> None:
    """The kernel starts a child's ru_maxrss at its parent's peak."""
    held = b"x" * 150_000_000
    sample = once(python("small", "import time; time.sleep(0.1)"))[0]
    del held
    assert sample.root_rss is None
    assert sample.peak < 60 * MB


def test_kernel_peak_catches_what_sampling_misses(tmp_path: Path) -> None:
    """From a small harness, which reads memory too seldom to see the peak."""
    script = (
        "import sys; from vitrify.bench.measure import Case, measure\n"
        "text = 'import time; x = b\"x\" * 200_000_000; del x; time.sleep(0.2)'\n"
        "sample = measure([Case('a', [sys.executable, '-c', text])], rounds=1, warmup=0, interval=5)[0]\n"
        "print(sample.root_rss, sample.peak)"
    )
    # through a shell: a process that pytest itself starts begins with the peak of pytest
    shell = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", script]
    done = subprocess.run(shell, capture_output=True, text=True, check=True)
    root, peak = map(int, done.stdout.split())
    assert root == peak
    assert root / MB == pytest.approx(200, rel=0.15)


def test_cpu_time_counts_descendants() -> None:
    spin = "import time\nwhile time.process_time() < 0.4: pass"
    sample = once(python("root", NEST, spin))[0]
    assert sample.cpu_s > 0.35


def test_others_that_are_busy_are_noted() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            sample = once(python("a", "import time; time.sleep(0.5)"))[0]
        finally:
            other.kill()
    assert sample.busy >= 1
    assert sample.others_cores > 0.1


def test_cases_take_turns_and_every_other_round_runs_backwards(tmp_path: Path) -> None:
    log = tmp_path / "log"
    text = "import sys; open(sys.argv[1], 'a').write(sys.argv[2] + '\\n')"
    cases = [python(name, text, str(log), name, repeats=2 if name == "c" else 1) for name in "abc"]
    events: list[Event] = []
    samples = measure(cases, rounds=3, warmup=1, report=events.append, out=tmp_path / "out.jsonl")
    ran = "".join(log.read_text().split())
    assert ran == "cbac" + "abcc" + "cbac" + "abcc"  # the warm-up is round 0, an even one
    assert "".join(s.case for s in samples) == ran[4:]
    assert [(s.round, s.repeat) for s in samples if s.case == "c"] == [(n, r) for n in (1, 2, 3) for r in (0, 1)]
    kept = records.read(tmp_path / "out.jsonl")
    assert kept.counted == samples
    assert len(kept.samples) == 16
    assert (events[-1].done, events[-1].total) == (16, 16)
    assert events[0].note == "warm-up of c"


def test_numbers_that_a_case_prints_and_its_hooks_add(tmp_path: Path) -> None:
    made = tmp_path / "made"
    case = python(
        "a",
        "import os; print('hello'); print('VITRIFY_BENCH {\"step_ms\": 12.5}'); print(os.environ['TOLD'])",
        env={"TOLD": "this", "HF_TOKEN": "hf_x"},
        before=made.touch,
        after=lambda text: {"made": made.exists(), "told": text.split().count("this")},
    )
    sample = once(case, out=tmp_path / "out.jsonl")[0]
    assert sample.values == {"step_ms": 12.5, "made": 1.0, "told": 1.0}
    header = records.read(tmp_path / "out.jsonl").headers[0]
    assert header["plan"]["cases"][0]["env"] == {"TOLD": "this", "HF_TOKEN": "***"}
    assert header["machine"]["cores"] == os.cpu_count()
    assert header["versions"]["psutil"] == psutil.__version__


@pytest.mark.parametrize("line", ['{"a": "text"}', '{"a": true}', '{"a": NaN}', "[1]", "{"])
def test_what_is_no_number_is_refused(line: str) -> None:
    with pytest.raises(CaseFailed, match="not a JSON object of finite numbers"):
        once(python("a", "import sys; print('VITRIFY_BENCH ' + sys.argv[1])", line))


def test_a_failure_shows_its_last_words_and_keeps_the_others(tmp_path: Path) -> None:
    fail = "import sys; [print('line', n, file=sys.stderr) for n in range(40)]; sys.exit('no such model')"
    cases = [python("good", "pass"), python("bad", fail), python("also good", "pass")]
    with pytest.raises(CaseFailed) as caught:
        measure(cases, rounds=2, warmup=0, out=tmp_path / "out.jsonl")
    assert "Case 'bad' exited with 1. Its last lines on stderr:\n  line 29\n" in caught.value.what
    assert caught.value.what.endswith("\n  no such model")
    assert caught.value.fix.startswith("Run it alone: ")
    assert [s.case for s in caught.value.samples] == ["good", "also good", "also good", "good"]
    kept = records.read(tmp_path / "out.jsonl")
    assert kept.samples == caught.value.samples
    assert [(f["case"], f["round"]) for f in kept.failures] == [("bad", 1)]


def test_other_ways_to_fail() -> None:
    def refuse() -> None:
        raise BadInput("There is no model.", "Make one.")

    with pytest.raises(CaseFailed, match="was killed by SIGKILL"):
        once(python("a", "import os; os.kill(os.getpid(), 9)"))
    with pytest.raises(CaseFailed, match="cannot be started: No such file"):
        once(Case("a", ["/no/such/program"]))
    with pytest.raises(CaseFailed, match=r"Case 'a' failed: There is no model. Make one\."):
        once(python("a", "pass", before=refuse))


@pytest.mark.parametrize("cases", [[], ["a", "a"]])
def test_cases_need_names_of_their_own(cases: list[str]) -> None:
    with pytest.raises(UsageError, match="each needs a name of its own"):
        once(*[python(name, "pass") for name in cases])


TELL = "import os, sys, time; open(sys.argv[1], 'a').write(f'{os.getpid()}\\n'); "
# two processes that write their numbers to argv[1]; the second one has left the first one's session
PAIR = (
    TELL + "import subprocess\n"
    "child = subprocess.Popen([sys.executable, '-S', '-c', sys.argv[2], sys.argv[1]], start_new_session=True)\n"
)
SLEEP = TELL + "time.sleep(60)"


def test_a_timeout_ends_the_whole_tree(tmp_path: Path) -> None:
    with pytest.raises(CaseFailed, match=r"Case 'slow' was stopped after 1\.5 s"):
        once(python("slow", PAIR + "child.wait()", str(tmp_path / "pids"), SLEEP, timeout=1.5))
    assert not any(is_alive(int(pid)) for pid in wait_for(tmp_path / "pids", 2))


def test_what_a_case_leaves_behind_is_ended_and_counted(tmp_path: Path) -> None:
    sample = once(python("a", PAIR + "time.sleep(0.4)", str(tmp_path / "pids"), SLEEP))[0]
    assert sample.left_behind == 1
    assert not any(is_alive(int(pid)) for pid in wait_for(tmp_path / "pids", 2))


def harness(tmp_path: Path) -> subprocess.Popen[str]:
    """A harness in a process of its own: a quick case, then one that would take a minute."""
    script = (
        "import sys; from pathlib import Path; from vitrify.bench.measure import Case, measure\n"
        "run = lambda name, *args: Case(name, [sys.executable, '-S', '-c', *args])\n"
        "measure([run('quick', 'pass'), run('slow', *sys.argv[2:])], rounds=1, warmup=0, out=Path(sys.argv[1]))"
    )
    out = str(tmp_path / "out.jsonl")
    slow = [PAIR + "child.wait()", str(tmp_path / "pids"), SLEEP]
    command = [sys.executable, "-c", script, out, *slow]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_ctrl_c_ends_the_tree_and_keeps_what_was_measured(tmp_path: Path) -> None:
    with harness(tmp_path) as running:
        pids = wait_for(tmp_path / "pids", 2)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=10)
    assert "KeyboardInterrupt" in said
    assert not any(is_alive(int(pid)) for pid in pids)
    assert [s.case for s in records.read(tmp_path / "out.jsonl").samples] == ["quick"]


def test_a_killed_harness_leaves_a_file_that_can_be_read_and_continued(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with harness(tmp_path) as running:
        pids = wait_for(tmp_path / "pids", 2)
        running.kill()
        running.communicate(timeout=10)
    for pid in pids:  # nobody is left to do it
        os.kill(int(pid), signal.SIGKILL)
    assert [s.case for s in records.read(out).samples] == ["quick"]
    with out.open("a") as stream:
        stream.write('{"kind": "sample", "case": "ha')
    once(python("later", "pass"), out=out)
    kept = records.read(out)
    assert [s.case for s in kept.samples] == ["quick", "later"]
    assert len(kept.headers) == 2
    assert kept.torn == 1


def test_without_psutil_nothing_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.delitem(sys.modules, "vitrify.bench.tree", raising=False)
    monkeypatch.delattr("vitrify.bench.tree", raising=False)
    with pytest.raises(MissingDependency, match=r'pip install "vitrify\[bench\]"'):
        once(python("a", "open(__import__('sys').argv[1], 'w')", str(tmp_path / "ran")))
    assert not (tmp_path / "ran").exists()


def test_the_harness_is_small() -> None:
    """What it loaded itself would hide the memory of small cases."""
    heavy = "{'torch', 'diffusers', 'transformers', 'onnxruntime', 'onnx', 'numpy', 'PIL'} & set(sys.modules)"
    script = f"import sys, vitrify.bench.first, vitrify.bench.tree; print({heavy} or 'none')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "none"
