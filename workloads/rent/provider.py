"""What a lease asks of whoever lends the machine."""

from dataclasses import dataclass
from typing import Protocol

# A machine in one of these will never train.
LOST = ("terminated", "terminating", "preempted", "unhealthy")


def dollars(amount: float) -> str:
    return "under a cent" if 0 < amount < 0.01 else f"${amount:,.2f}"


@dataclass(frozen=True)
class Offer:
    """A type of machine that can be had in a region now; price in dollars an hour."""

    type: str
    region: str
    price: float
    gpus: int = 0
    gpu_memory: int = 0  # GiB of one GPU, 0 where its description does not say
    text: str = ""

    def __str__(self) -> str:
        return f"{self.type} in {self.region}, ${self.price:.2f} an hour"


@dataclass(frozen=True)
class RentedMachine:
    """A machine as its provider lists it, without what may be secret there."""

    id: str
    name: str = ""
    status: str = ""
    address: str = ""
    region: str = ""
    type: str = ""
    price: float = 0.0


@dataclass(frozen=True)
class Request:
    """What is asked for. max_price: dollars an hour, 0 for any; memory: GiB of a GPU at least.

    hours: from the launch to the last copy, 0 for no end; tries: machines, until one trains;
    wait_seconds: for capacity.
    """

    types: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    max_price: float = 0.0
    memory: int = 0
    hours: float = 0.0
    tries: int = 1
    wait_seconds: float = 0.0

    def suits(self, offer: Offer) -> bool:
        if self.types and offer.type not in self.types:
            return False
        if self.regions and offer.region not in self.regions:
            return False
        if self.max_price and offer.price > self.max_price:
            return False
        # Where no type is named: GPUs that are large enough, beside the usual processors.
        usual = offer.gpus > 0 and offer.gpu_memory >= self.memory and "gh200" not in offer.type
        return bool(self.types) or usual

    def __str__(self) -> str:
        parts = [", ".join(self.types) or "any GPU"]
        parts += [f"of {self.memory} GiB or more"] if self.memory and not self.types else []
        parts += [f"in {', '.join(self.regions)}"] if self.regions else []
        parts += [f"up to ${self.max_price:.2f} an hour"] if self.max_price else []
        return " ".join(parts)


class NoCapacity(Exception):
    """Somebody else was quicker, even where an offer was listed."""


class Provider(Protocol):
    """Lends machines; raises UserError for what a person must put right, Retry for trouble."""

    name: str
    bills: bool  # whether a machine costs until it is ended
    end_by_hand: str  # what a person types to end MACHINE without this program

    def ready(self) -> None:
        """Raise UserError where a lease could not begin: a wrong key, no ssh key."""

    def offers(self) -> list[Offer]:
        """What can be had now."""

    def launch(self, offer: Offer, name: str) -> str:
        """Rent one machine and give back its id; NoCapacity where it is gone."""

    def machines(self) -> list[RentedMachine]:
        """All machines of the account."""

    def machine(self, id: str) -> RentedMachine | None:
        """One machine; None where it is gone."""

    def terminate(self, id: str) -> None:
        """Ask for its end; success says only that the wish was heard."""
