"""What an instruction of a Dockerfile means, and which are refused."""

from __future__ import annotations

import pytest

from isolate.build import instructions as i
from isolate.build.forms import read
from isolate.build.syntax import DockerfileError, parse_syntax
from tests.build.corpora import ROOT


def one(text: str) -> object:
    (written,) = parse_syntax(text).instructions
    return read(written)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("from --platform=linux/arm64 Debian:12 as Base", i.From("Debian:12", "base", "linux/arm64")),
        ("RUN a  b", i.Run(("a  b",), shell=True)),
        ('RUN --network=none ["a"]', i.Run(("a",), network="none")),
        (
            "RUN --mount=type=cache,target=/c,id=x,sharing=locked,mode=0700,uid=5 a",
            i.Run(
                ("a",), True, (i.Mount("cache", "/c", id="x", sharing="locked", mode=0o700, uid=5, read_only=False),)
            ),
        ),
        ("RUN --mount=target=/s,from=b,source=c a", i.Run(("a",), True, (i.Mount("bind", "/s", "c", "b"),))),
        (
            "RUN --mount=type=Tmpfs,dst=/s,size=64m,ro a",
            i.Run(("a",), True, (i.Mount("tmpfs", "/s", size="64m", read_only=True),)),
        ),
        ("RUN --mount=type=secret,src=t a", i.Run(("a",), True, (i.Mount("secret", id="t"),))),
        ("RUN --mount=type=secret,destination=/x/t a", i.Run(("a",), True, (i.Mount("secret", "/x/t", id="t"),))),
        ("RUN --mount=target=/s,rw a", i.Run(("a",), True, (i.Mount("bind", "/s", read_only=False),))),
        ("RUN --mount=type=secret,id=t,required a", i.Run(("a",), True, (i.Mount("secret", id="t", required=True),))),
        ("COPY --from=b --chown=1:2 --link a b /c/", i.Copy(("a", "b"), "/c/", origin="b", owner="1:2", link=True)),
        ("ADD --unpack=false a.tar /", i.Copy(("a.tar",), "/", add=True, unpack=False)),
        ("COPY --exclude=*.o --exclude=x --parents a /", i.Copy(("a",), "/", parents=True, exclude=("*.o", "x"))),
        ("ENV a=1 b='2 3'", i.Env((("a", "1"), ("b", "'2 3'")))),
        ("ENV a b c", i.Env((("a", "b c"),))),
        ("ARG a b=1", i.Arg((("a", None), ("b", "1")))),
        ("CMD", i.Cmd(())),
        ("CMD []", i.Cmd(())),
        ("ENTRYPOINT a b", i.Entrypoint(("a b",), shell=True)),
        ('SHELL ["/bin/bash", "-c"]', i.Shell(("/bin/bash", "-c"))),
        ("HEALTHCHECK NONE", i.HealthCheck((), disabled=True)),
        ("HEALTHCHECK --interval=1m30s --retries=3 CMD a b", i.HealthCheck(("a b",), True, interval=90.0, retries=3)),
        ("MAINTAINER a b", i.Label((("maintainer", "a b"),))),
        ("ONBUILD RUN a", i.OnBuild("RUN a", i.Run(("a",), shell=True))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_value(text: str, value: object) -> None:
    assert one(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("RUNN a", "unknown instruction 'RUNN': did you mean RUN?"),
        ("RUN", "at least 1 argument: a command"),
        ("RUN --netwrok=none a", "unknown flag --netwrok 'netwrok': did you mean network?"),
        ("RUN --network=mine a", "it must be none, host or default"),
        ("RUN --security=insecure a", "no more rights"),
        ("RUN --mount=type=ssh,target=/a a", "give the key as a secret"),
        ("RUN --mount=type=cache a", "target is missing"),
        ("RUN --mount=type=cache,target=/a,sharng=x a", "did you mean sharing?"),
        ("RUN --mount=type=cache,target=/a,mode=9 a", "mode='9' is no number"),
        ("RUN --mount=type=cash,target=/a a", "did you mean 'cache'?"),
        ("RUN --mount=type=cache,target=/a,sharing=lockd a", "did you mean 'locked'?"),
        ("RUN --mount=type=cache,target=/a,source=x a", "from is missing"),
        ("RUN --mount=type=cache,target=/a,size=1M a", "a cache has no size"),
        ("RUN --mount=type=cache,target=/a,ro=perhaps a", "readonly=perhaps must be true or false"),
        ("RUN --mount=type=cache,target=/a,required a", "a cache has no required"),
        ("RUN --mount=type=cache,target=/a,env=X a", "a cache has no env"),
        ("RUN --mount=target=/a,uid=1 a", "a bind has no uid"),
        ("RUN --mount=target=/a,mode=0700 a", "a bind has no mode"),
        ("RUN --mount=target=/a,sharing=private a", "a bind has no sharing"),
        ("RUN --mount=target=/a,id=x a", "a bind has no id"),
        ("RUN --mount=target=/a,from=$X a", "FROM $X AS name"),
        ("RUN --mount=type=tmpfs,target=/a,uid=1 a", "a tmpfs has no uid"),
        ("RUN --mount=type=tmpfs,target=/a,from=b a", "a tmpfs has no from"),
        ("RUN --mount=type=tmpfs,target=/a,size=many a", "size"),
        ("RUN --mount=type=tmpfs,target=/a,mode=77777 a", "mode"),
        ("RUN --mount=type=secret,id=x,from=b a", "a secret has no from"),
        ("RUN --mount=type=secret,id=x,source=b a", "one of them"),
        ("RUN --mount=type=secret,id=x,rw a", "cannot be written"),
        ("RUN --mount=type=secret,id=x,env= a", "no name of a variable"),
        ("RUN --mount=type=secret a", "needs an id"),
        ("ADD --checksum=sha256:0 a b", "none is fetched"),
        ("COPY a", "at least 2 arguments"),
        ("COPY --link=maybe a b", "true or false"),
        ("COPY --chown=a --chown=b a b", "given twice"),
        ("ADD https://example.org/x /", "is not fetched"),
        ("FROM a b", "at most AS and a name"),
        ("FROM a as 1b", "no name for a stage"),
        ("SHELL /bin/sh", "in brackets"),
        ("HEALTHCHECK CONNECT TCP 7000", "neither NONE nor CMD"),
        ("HEALTHCHECK --interval=5 CMD a", "not a duration"),
        ("ENV =a", "may not be empty"),
        ("ARG =a", "may not be empty"),
        ("ONBUILD FROM a", "may not stand behind ONBUILD"),
        ("WORKDIR", "exactly one argument"),
        ("LABEL --x=y a=b", "unknown flag --x"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        one(text)
    assert message in str(caught.value)
    assert "line 1" in str(caught.value)


def test_official_files_are_read() -> None:
    if not ROOT.exists():
        pytest.skip("shared/corpora is not beside the checkout")
    read_ones = 0
    for path in sorted((ROOT / "dockerfiles-official").glob("*")):
        for written in parse_syntax(path.read_bytes()).instructions:
            read(written)
            read_ones += 1
    assert read_ones > 100
