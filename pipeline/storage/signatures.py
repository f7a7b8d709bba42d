"""Signed URLs: which part of the query is the signature, and which names the object.

A link that was signed again is another text for the same object, so ids are made from the URL
without its signature. What a query says about the object stays: its version or generation, a part
or a processing of it, and everything else that is not listed here. What the store is asked to say
about it (`response-content-type` and others) changes no byte of the object and is left out, if the
URL is signed.

A signature is recognised by a parameter with a maker's name, or by several together of which one
has an unmistakable form. A URL in which none is recognised is not changed in any way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote_plus

_ANSWER = (
    "response-cache-control",
    "response-content-disposition",
    "response-content-encoding",
    "response-content-language",
    "response-content-type",
    "response-expires",
)
"""What S3, Google and those that follow them let the owner of a link say about the answer."""


@dataclass(frozen=True)
class _Kind:
    """One way to sign.

    Attributes:
        needed: the parameters by which it is recognised, with the form of their values.
        also: other parameters that belong to it.
        hosts: the only hosts (and their subdomains) that sign in this way; (): any may.
    """

    needed: dict[str, str]
    also: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        return frozenset((*self.needed, *self.also))

    def is_in(self, host: str, values: dict[str, str]) -> bool:
        if self.hosts and not host.endswith(tuple(f".{name}" for name in self.hosts)):
            return False
        return all(
            name in values and re.fullmatch(form, values[name], re.DOTALL)
            for name, form in self.needed.items()
        )


_ANY, _TIME, _HEX = ".+", r"\d+", "[0-9a-fA-F]"


def _version_4(maker: str, *also: str) -> _Kind:
    """AWS's Signature Version 4 in a query, as several makers took it over."""
    names = ("algorithm", "credential", "date", "expires", "signedheaders", "content-sha256")
    return _Kind(
        {f"x-{maker}-signature": _ANY},
        (*(f"x-{maker}-{name}" for name in (*names, "security-token")), *also, *_ANSWER),
    )


_KINDS = (
    # AWS S3 and what speaks its language; the last two are added by AWS's SDK for JavaScript.
    _version_4("amz", "x-amz-region-set", "x-amz-user-agent", "x-amz-checksum-mode", "x-id"),
    _Kind(
        {"awsaccesskeyid": _ANY, "signature": _ANY}, ("expires", "x-amz-security-token", *_ANSWER)
    ),
    # CloudFront, with a canned or a custom policy.
    _Kind({"key-pair-id": _ANY, "signature": _ANY}, ("expires", "policy", "hash-algorithm")),
    # Google Cloud Storage, version 4 and 2; its CDN.
    _version_4("goog"),
    _Kind({"googleaccessid": _ANY, "signature": _ANY}, ("expires", *_ANSWER)),
    _Kind({"keyname": _ANY, "signature": _ANY, "expires": _TIME}, ("urlprefix",)),
    # Azure's shared access signatures: with an end, or with a stored policy.
    *(
        _Kind(
            {"sig": _ANY, "sv": r"\d{4}-\d\d-\d\d", end: _ANY},
            (
                *("se", "si", "sp", "spr", "sr", "srt", "ss", "st", "sip", "sdd", "ses"),
                *("skoid", "sktid", "skt", "ske", "sks", "skv", "skdutid", "sduoid"),
                *("saoid", "suoid", "scid", "rscc", "rscd", "rsce", "rscl", "rsct"),
            ),
        )
        for end in ("se", "si")
    ),
    # Alibaba's OSS, version 1 and 4.
    _Kind({"ossaccesskeyid": _ANY, "signature": _ANY}, ("expires", "security-token", *_ANSWER)),
    _version_4("oss", "x-oss-signature-version", "x-oss-additional-headers"),
    # Tencent's COS, Huawei's OBS, Volcano Engine's TOS, Baidu's BOS.
    _Kind(
        {"q-ak": _ANY, "q-signature": _ANY},
        (
            *("q-sign-algorithm", "q-sign-time", "q-key-time", "q-header-list", "q-url-param-list"),
            *("x-cos-security-token", *_ANSWER),
        ),
    ),
    _Kind(
        {"accesskeyid": _ANY, "signature": _ANY, "expires": _TIME},
        ("x-obs-security-token", *_ANSWER),
    ),
    _version_4("obs"),
    _version_4("tos"),
    _Kind({"authorization": "bce-auth-v1/.+"}, ("x-bce-security-token", "responsecontenttype")),
    # Links without a maker's name, by the form of their values: Akamai's token, Discord's.
    *(
        _Kind({name: rf"(?:[a-z]+=[^~]*~)*hmac={_HEX}{{32,}}"})
        for name in ("__token__", "hdnts", "hdnea", "hdntl")
    ),
    _Kind(
        {"ex": f"{_HEX}{{8}}", "is": f"{_HEX}{{8}}", "hm": f"{_HEX}{{64}}"},
        hosts=("discordapp.com", "discordapp.net"),
    ),
)


_WITH_QUERY = re.compile(r"https?://([^/?#]*)[^?#]*\?([^#]*)(#.*)?", re.DOTALL | re.IGNORECASE)


def without_signature(url: str) -> str:
    """The URL without its signature; the same text if it has none. The rest is not changed.

    Only http and https URLs have one.
    """
    found = _WITH_QUERY.fullmatch(url) if "?" in url else None
    if found is None:
        return url
    pairs = found[2].split("&")
    values = {_name(pair): unquote_plus(pair.partition("=")[2]) for pair in pairs}
    host = "." + found[1].rpartition("@")[2].partition(":")[0].lower()
    kinds = [kind for kind in _KINDS if kind.is_in(host, values)]
    if not kinds:
        return url
    signature = frozenset[str]().union(*(kind.names for kind in kinds))
    kept = "&".join(pair for pair in pairs if _name(pair) not in signature)
    return url[: found.start(2) - 1] + (f"?{kept}" if kept else "") + (found[3] or "")


def _name(pair: str) -> str:
    return unquote_plus(pair.partition("=")[0]).lower()
