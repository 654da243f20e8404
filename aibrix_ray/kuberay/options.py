"""What a manifest needs beyond the Serve file: names, image, Ray's version, where secrets lie."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from aibrix_ray.engines.versions import RAY
from aibrix_ray.errors import ConfigError

DEFAULT_RAY_VERSION = "2.60.0"
#: The key of the Secret, and the variable that Hugging Face's library reads.
HF_TOKEN = "HF_TOKEN"
#: The key of the Secret, and the variable that gateways read: the URL of the store of API keys.
STORE = "AIBRIX_RAY_STORE"

#: KubeRay appends six characters for the cluster's name and ten for its service's, of 63.
_NAME_MAX = 47
_NAME = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SECRET = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_SECRET_KEY = re.compile(r"[A-Za-z0-9._-]{1,253}")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclass(frozen=True, slots=True)
class SecretKey:
    """One entry of a Kubernetes Secret."""

    secret: str
    key: str = HF_TOKEN

    @classmethod
    def read(cls, text: str, *, path: str = "--hf-token-secret", key: str = HF_TOKEN) -> Self:
        """Read `NAME` or `NAME:KEY`; `key` is the entry where none is named.

        Raises:
            ConfigError: it is neither.
        """
        secret, colon, named = text.partition(":")
        if _SECRET.fullmatch(secret) and (_SECRET_KEY.fullmatch(named) if colon else True):
            return cls(secret, named or key)
        raise ConfigError(
            path=path,
            # A store's URL holds a password, and what is refused is printed.
            value=text if "://" not in text else "a URL",
            expected="the name of a Secret, or NAME:KEY",
            hint="this is no place for the secret itself; store it: "
            f"kubectl create secret generic NAME --from-literal={key}=...",
        )


STORE_SECRET = SecretKey("aibrix-ray-store", STORE)


@dataclass(frozen=True, slots=True)
class RenderOptions:
    """The options of one manifest; checked at birth.

    Attributes:
        name: of the RayService; its address becomes `NAME-serve-svc`.
        image: of every pod; it holds Ray, an engine and this package.
        namespace: of the RayService; None: whichever `kubectl` uses.
        ray_version: of the Ray in the image.
        hf_token: where the token for gated models lies; None: there is none.
        store: where the URL of the store of API keys lies; None: in `STORE_SECRET`, unless the
            file has it or no keys are asked for.
    """

    name: str
    image: str
    namespace: str | None = None
    ray_version: str = DEFAULT_RAY_VERSION
    hf_token: SecretKey | None = None
    store: SecretKey | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: KubeRay or Kubernetes would refuse one of them.
        """
        if not _NAME.fullmatch(self.name) or len(self.name) > _NAME_MAX:
            raise ConfigError(
                path="--name",
                value=self.name,
                expected=f"at most {_NAME_MAX} lower-case letters, digits and dashes, the first "
                "a letter",
                hint=f"write {name_from(self.name)!r}",
            )
        if self.namespace is not None and not _NAMESPACE.fullmatch(self.namespace):
            raise ConfigError(
                path="--namespace",
                value=self.namespace,
                expected="at most 63 lower-case letters, digits and dashes",
            )
        if not self.image or self.image != self.image.strip():
            raise ConfigError(
                path="--image", value=self.image, expected="an image such as NAME:TAG"
            )
        if not _VERSION.fullmatch(self.ray_version) or not RAY.admits(self.ray_version):
            raise ConfigError(
                path="--ray-version",
                value=self.ray_version,
                expected=f"a release of Ray in the range {RAY.range}",
                hint="it is the version of the Ray in the image",
            )


def default_image(ray_version: str) -> str:
    """Return the image's name where none is given.

    It names Ray's version and not ours: rendering with a newer version of this package must not
    by itself replace a running cluster.
    """
    return f"aibrix-ray:ray-{ray_version}"


def name_from(text: str) -> str:
    """Return the nearest valid name of a RayService."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    name = name if name[:1].isalpha() else f"llm-{name}".rstrip("-")
    return name[:_NAME_MAX].rstrip("-")
