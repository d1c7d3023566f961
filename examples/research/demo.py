"""The research agent on a sample feed, from nothing, in half a minute: run it with `make demo`.

Every step is a `stratum` command that you can type yourself; the demo shows it and what it prints.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
DATA = ROOT / ".stratum" / "demo"
OPTIONS = ["--config", str(HERE / "stratum.toml"), "--data-dir", str(DATA)]
SHOWN_OPTIONS = "--config examples/research/stratum.toml --data-dir .stratum/demo"

BOLD, DIM, PLAIN = ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "", "")

WHAT_IT_NOTED = """
select substr(about, 1, 10) as paper, revisions as rev, round(score, 2) as relevance,
  array_to_string(list_slice(list_transform(from_json(data -> 'key_terms',
    '[{"term":"VARCHAR"}]'), lambda t: t.term), 1, 3), ', ') as key_terms
from memory where agent = 'research' and kind = 'paper' order by score desc, paper"""

LINKS = """
select substr(m.about, 1, 10) as paper, strftime(m.time, '%H:%M:%S') as read_at,
  r.paper as earlier_paper, round(r.score, 2) as score, r.why
from memory m, (select unnest(from_json(data -> 'related',
    '[{"paper":"VARCHAR","score":"DOUBLE","why":["VARCHAR"]}]')) as each, note from memory
    where kind = 'paper') u,
  lateral (select each.paper, each.score, each.why[1] as why) r
where m.note = u.note and m.about >= '2607' order by r.score desc limit 8"""

MESSAGES = """
select messages.seq, messages.about as paper, round((data ->> 'relevance')::double, 2) as relevance,
  data ->> 'revised' as revised, data ->> 'title' as title
from messages join events using (seq) where receiver = 'editor' order by messages.seq desc limit 6"""


FIELD = """
select trend, t.term, t.papers, t.before, t.recent from (
  select unnest(['rising', 'falling']) as trend,
    unnest([data -> 'rising', data -> 'falling']) as list from memory where kind = 'field'),
  lateral (select unnest(list_slice(from_json(list,
    '[{"term":"VARCHAR","papers":"INT","before":"INT","recent":"INT"}]'), 1, 4)) as t)"""


def main() -> int:
    shutil.rmtree(DATA, ignore_errors=True)
    title("A research lab's monitor of papers: it remembers, it links, it survives")
    say("1. Start everything on this machine: server, streams, projector, the research agent")
    stratum("up", "--detach")
    try:
        story()
    finally:
        stratum("down", quiet=True)
    goodbye()
    return 0


def story() -> None:
    say("2. Hand it a feed of eight papers from spring (arXiv's format; invented for this demo)")
    stratum("research", "read", str(HERE / "sample-earlier.xml"), "--wait")

    say("3. Hand it the papers of summer, and kill -9 the agent in the middle of its work")
    before = papers_done()
    handing = start("research", "read", str(HERE / "sample-later.xml"), "--wait")
    wait_until(lambda: papers_done() >= before + 3)
    pid = agent_pid()
    os.kill(pid, signal.SIGKILL)
    killed_at = papers_done() - before
    print(f"  {DIM}killed process {pid} after paper {killed_at} of 7{PLAIN}")
    finish(handing)
    print(f"  {DIM}started again by its supervisor; what it had in hand was given out again{PLAIN}")

    say("4. What it noted: one note a paper, relevance to the lab's interests, a revision for v2")
    stratum("sql", WHAT_IT_NOTED, shown="select paper, relevance, key_terms … from memory …")

    say("5. Prior work that it brought up: the summer's papers point to what it read before")
    stratum("sql", LINKS, shown="select paper, earlier_paper, score, why … from memory …")

    say("6. Messages: the editor is told of what passes the threshold, once for each version")
    stratum("sql", MESSAGES, shown="select seq, title … from messages … where receiver = 'editor'")

    say("7. Its picture of the field, revised with every paper")
    stratum("sql", FIELD, shown="select … from memory where kind = 'field'")

    say("8. Nothing is lost and nothing is doubled")
    stratum("sql", "select state, count(*) as messages from messages group by state order by state")
    stratum("sql", "select count(*) as notes, count(distinct about) as papers from memory "
            "where kind = 'paper'")  # fmt: skip


def goodbye() -> None:
    say("It is stopped again; its data stays. Try next:")
    print(f"""
  alias stratum='.venv/bin/stratum {SHOWN_OPTIONS}'
  stratum up --detach                       start it again: it remembers
  stratum tail --from start                 every event, in order
  stratum memory research --about 2602.99004
  stratum inbox editor                      what waits for the editor
  stratum run list                          each paper was a run; `stratum run show RUN` tells it
  stratum research read FEED.xml --wait     your own feed, a file or an arXiv API address
  stratum sql 'select * from agents'
  stratum down
""")


def title(text: str) -> None:
    print(f"\n{BOLD}{text}{PLAIN}")


def say(text: str) -> None:
    print(f"\n{BOLD}{text}{PLAIN}", flush=True)


def stratum(*arguments: str, shown: str | None = None, quiet: bool = False) -> None:
    """Show a command and run it; a failure ends the demo with its exit code."""
    finish(start(*arguments, shown=shown, quiet=quiet), quiet=quiet)


def start(*arguments: str, shown: str | None = None, quiet: bool = False) -> subprocess.Popen[str]:
    words = [*arguments[:-1], shown] if shown else [short(word) for word in arguments]
    line = " ".join(f'"{word}"' if " " in word else word for word in words)
    if not quiet:
        print(f"{DIM}$ stratum {line}{PLAIN}", flush=True)
    command = [sys.executable, "-m", "stratum_cli", *OPTIONS, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str], *, quiet: bool = False) -> None:
    output, _ = process.communicate(timeout=60)
    width = shutil.get_terminal_size((110, 24)).columns
    for line in output.splitlines():
        if not quiet and not line.startswith("as of LOG"):
            print(f"  {line if len(line) <= width - 2 else line[: width - 3] + '…'}")
    if process.returncode != 0:
        print(output if quiet else "", file=sys.stderr)
        sys.exit(process.returncode)


def short(word: str) -> str:
    return os.path.relpath(word, ROOT) if word.startswith("/") else word


def agent_pid() -> int:
    """The process of the agent, as the log of `stratum up` has it."""
    return int(re.findall(r"research: started.*\(pid (\d+)\)", log())[-1])


def papers_done() -> int:
    return len(re.findall(r"research (?:noted|revised) ", log()))


def log() -> str:
    return (DATA / "up.log").read_text()


def wait_until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 20
    while not condition():
        if time.monotonic() > give_up:
            sys.exit("the agent did not begin to read within 20 s; see .stratum/demo/up.log")
        time.sleep(0.001)


if __name__ == "__main__":
    sys.exit(main())
