"""Signed URLs: the same object signed again has the same key, another object another.

The parameters are those of each maker's documentation, read in 2026: AWS "Authenticating Requests:
Using Query Parameters (Signature Version 4)" and "Signing and authenticating REST requests" (2),
CloudFront "Use signed URLs", Google Cloud Storage "Signed URLs" and "V2 signing process", Cloud CDN
"Use signed URLs", Azure "Create a service SAS", "... user delegation SAS", "... account SAS",
Alibaba OSS "Include a V4 signature in a URL" and "Include a V1 signature in a URL", Tencent COS
"Request signature", Huawei OBS "Authentication in a URL".
"""

from __future__ import annotations

import re
from pathlib import Path

import botocore.session
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.manifest.files import Manifest
from pipeline.manifest.rows import Problems, RowReader
from pipeline.storage.signatures import without_signature
from tests.builders.work_rows import PARAMETERS
from tests.servers.s3_server import S3Server

AZURE = "sig={0}%2Bb%2FcDeFgHiJkLmNoPqRsTuVwXyZ0123456789abcd%3D"
SIGNED = {
    "aws v4": "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIA{0}%2F20260101%2Fus-east-1"
    "%2Fs3%2Faws4_request&X-Amz-Date=2026010{0}T000000Z&X-Amz-Expires=3600&X-Amz-SignedHeaders=host"
    "&X-Amz-Signature=abc{0}",
    "aws v4 by a role": "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Content-Sha256=UNSIGNED-PAYLOAD"
    "&X-Amz-Credential=ASIA{0}&X-Amz-Date=2026010{0}T000000Z&X-Amz-Expires=3600"
    "&X-Amz-Security-Token=IQoJ{0}&X-Amz-Signature=abc{0}&X-Amz-SignedHeaders=host"
    "&x-amz-checksum-mode=ENABLED&x-id=GetObject",
    "aws v4, in lower case": "x-amz-algorithm=AWS4-HMAC-SHA256&x-amz-credential=a{0}"
    "&x-amz-date={0}&x-amz-expires=9&x-amz-signedheaders=host&x-amz-signature=abc{0}",
    "aws v4a": "X-Amz-Algorithm=AWS4-ECDSA-P256-SHA256&X-Amz-Credential=a{0}&X-Amz-Date={0}"
    "&X-Amz-Expires=9&X-Amz-Region-Set=%2A&X-Amz-SignedHeaders=host&X-Amz-Signature=abc{0}",
    "aws v4 with an answer": "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIA{0}"
    "&X-Amz-Date={0}&X-Amz-Expires=3600&X-Amz-SignedHeaders=host&X-Amz-Signature=abc{0}"
    "&response-content-disposition=attachment%3B%20filename%3D{0}.png",
    "aws v2": "AWSAccessKeyId=AKIA{0}&Signature=a%2B{0}%3D&Expires=176{0}",
    "aws v2 by a role": "AWSAccessKeyId=ASIA{0}&Signature=a%2B{0}%3D&x-amz-security-token=IQ{0}"
    "&Expires=176{0}",
    "cloudfront, canned": "Expires=176{0}&Signature=nitfHRCrtziwO2HwPfWw~yYDhUF5EwRun{0}"
    "&Key-Pair-Id=K2JCJMDEHXQW5F",
    "cloudfront, custom": "Policy=eyANCiAgICEXAMPLE{0}&Signature=nitf{0}_&Key-Pair-Id=K{0}"
    "&Hash-Algorithm=SHA256",
    "google v4": "X-Goog-Algorithm=GOOG4-RSA-SHA256&X-Goog-Credential=me%40project{0}"
    "&X-Goog-Date={0}&X-Goog-Expires=900&X-Goog-SignedHeaders=host&X-Goog-Signature=247a{0}",
    "google v2": "GoogleAccessId=me%40project&Expires=176{0}&Signature=a{0}%3D",
    "google cdn": "Expires=176{0}&KeyName=my-key&Signature=a-{0}_=",
    "azure service": f"sv=2022-11-02&st=2026-01-0{{0}}&se=2026-02-0{{0}}&sr=b&sp=r&{AZURE}",
    "azure account": f"sv=2024-08-04&ss=b&srt=o&sp=r&se=2026-0{{0}}-01&spr=https&{AZURE}",
    "azure by a user": "sv=2024-08-04&skoid=a&sktid=b&skt=2026-01-0{0}&ske=2026-02-01&sks=b"
    f"&skv=2024-08-04&se=2026-02-0{{0}}&sr=b&sp=r&{AZURE}",
    "azure by a policy": f"sv=2022-11-02&si=readers&sr=c&{AZURE}",
    "oss v1": "OSSAccessKeyId=a{0}&Expires=176{0}&Signature=a{0}%3D&security-token=x{0}",
    "oss v4": "x-oss-signature-version=OSS4-HMAC-SHA256&x-oss-credential=a{0}&x-oss-date={0}"
    "&x-oss-expires=9&x-oss-signature=a{0}&x-oss-security-token=b{0}",
    "cos": "q-sign-algorithm=sha1&q-ak=a{0}&q-sign-time=1;{0}&q-key-time=1;{0}&q-header-list=host"
    "&q-url-param-list=&q-signature=a{0}&x-cos-security-token=b{0}",
    "obs": "AccessKeyId=a{0}&Expires=176{0}&Signature=a{0}%3D",
    "tos": "X-Tos-Algorithm=TOS4-HMAC-SHA256&X-Tos-Credential=a{0}&X-Tos-Date={0}&X-Tos-Expires=9"
    "&X-Tos-SignedHeaders=host&X-Tos-Signature=a{0}",
    "bos": "authorization=bce-auth-v1%2Fa{0}%2F2026-01-01T00%3A00%3A00Z%2F1800%2Fhost%2Fa{0}",
    "akamai": "__token__=exp=176{0}~acl=%2f*~hmac=" + "{0}" * 64,
    "xet": "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=cas%2F{0}&X-Amz-Date={0}"
    "&X-Amz-Expires=3600&X-Amz-Signature=abc{0}&X-Amz-SignedHeaders=host&x-id=GetObject"
    "&Expires=176{0}&Policy=eyJ{0}&Signature=a~{0}&Key-Pair-Id=K2L",
}
"""A query of each kind, with a place for what is new when the link is signed again."""
OBJECT = "https://photos.example.com/a%2Fb.png"


@pytest.mark.parametrize("kind", SIGNED)
def test_signed_again_it_is_the_same_object(kind: str) -> None:
    one, two = (f"{OBJECT}?{SIGNED[kind].format(n)}" for n in (1, 2))
    assert without_signature(one) == without_signature(two) == OBJECT
    assert without_signature(one.replace("a%2Fb", "other")) == OBJECT.replace("a%2Fb", "other")


@pytest.mark.parametrize("kind", SIGNED)
@pytest.mark.parametrize(
    "names",
    [
        "versionId=3sL4kqtJlcpXroDTDmJ%2BrmSpXd3",
        "generation=1360887697105000",
        "versionid=2026-01-01T00%3A00%3A00.1Z&snapshot=x",
        "partNumber=2",
        "x-oss-process=image%2Fresize,w_100",
        "w=100&fm=png",
        "anything=%2F+x&&b",
    ],
)
def test_what_names_the_object_stays_as_it_is_written(kind: str, names: str) -> None:
    signature = SIGNED[kind].format(1)
    for query in (f"{names}&{signature}", f"{signature}&{names}"):
        assert without_signature(f"{OBJECT}?{query}") == f"{OBJECT}?{names}"
    assert without_signature(f"{OBJECT}?{names}&{signature}#f?x") == f"{OBJECT}?{names}#f?x"


@pytest.mark.parametrize(
    "url",
    [
        "https://host/a.png",
        "https://host/a.png?",
        "https://host/a.png?w=1&Expires=5",
        "https://host/a.png?Expires=5&Signature=abc",
        "https://host/a.png?signature=abc&key-pair-id=",
        "https://host/a.png?token=abc&expires=5",
        "https://host/a.png?sig=abc&v=1&se=2",
        "https://host/a.png?sv=1&sig=abc&se=2",
        "https://host/a.png?X-Amz-Date=5&X-Amz-Credential=abc",
        "https://host/a.png?keyname=a&signature=b&expires=never",
        "https://host/a.png?response-content-type=image%2Fpng&versionId=1",
        "https://host/a.png?ex=00000000&is=00000000&hm=" + "0" * 64,
        "https://host/a.png?page=2#X-Amz-Signature=abc&X-Amz-Algorithm=b&X-Amz-Credential=c",
        "https://host/?url=https://b.s3.amazonaws.com/x?AWSAccessKeyId%3Da%26Signature%3Db",
        "s3://bucket/a?AWSAccessKeyId=a&Signature=b&Expires=5",
        "/data/a?AWSAccessKeyId=a&Signature=b&Expires=5",
    ],
)
def test_without_a_signature_nothing_changes(url: str) -> None:
    assert without_signature(url) == url


def test_discords_links() -> None:
    link = "https://cdn.discordapp.com/attachments/1/2/a.png?ex={0}&is={0}&hm={1}&"
    one, two = (link.format(n * 8, n * 64) for n in "ab")
    assert without_signature(one) == without_signature(two)
    assert "ex=" not in without_signature(one)


@pytest.mark.parametrize("version", ["s3v4", "s3"])
def test_links_as_botocore_signs_them(version: str) -> None:
    """botocore 1.43."""

    def sign(key: str, **of_object: str) -> str:
        client = botocore.session.Session().create_client(
            "s3",
            region_name="us-east-1",
            aws_access_key_id=f"AKIA{key}",
            aws_secret_access_key=key,
            aws_session_token=f"token {key}",
            config=botocore.config.Config(signature_version=version),
        )
        where = {"Bucket": "bucket", "Key": "a b/ü+.png", **of_object}
        return str(client.generate_presigned_url("get_object", Params=where, ExpiresIn=60))

    one, two = sign("one"), sign("two")
    assert one != two
    assert without_signature(one) == without_signature(two) == one.partition("?")[0]
    version_of = sign("one", VersionId="v1+x")
    assert version_of.partition("?")[2] != one.partition("?")[2]
    assert re.fullmatch(r".*\?versionId=v1%2Bx", without_signature(version_of))


def test_ids_know_nothing_of_the_signature(tmp_path: Path, s3_process: S3Server) -> None:
    """And those of a URL that is not signed are made of all of it."""
    plain = "https://host/a.png?w=1"
    keys = []
    for _ in range(2):
        urls = [s3_process.presigned_url("a.png"), f"{plain}&Expires=1", plain]
        pq.write_table(
            pa.table({"image": urls, "target_prompt": ["x"] * 3}), tmp_path / "m.parquet"
        )
        manifest = Manifest.open(str(tmp_path / "m.parquet"))
        (batch,) = manifest.batches()
        rows = list(RowReader(manifest, PARAMETERS, None).read(batch, Problems()))
        assert [row.uri for row in rows] == urls, "it is fetched by the link as it is"
        keys.append([row.uri_key for row in rows])
    assert keys[0] == keys[1]
    assert keys[0] == [s3_process.presigned_url("a.png").split("?")[0], f"{plain}&Expires=1", plain]
