"""A service of BentoML's own without our doors: what the attacks do to it."""

from __future__ import annotations

import bentoml


@bentoml.service(name="PlainRunner")
class PlainRunner:
    @bentoml.api  # type: ignore[untyped-decorator]  # bentoml is untyped here
    async def double(self, numbers: list[float]) -> list[float]:
        return [2 * number for number in numbers]


@bentoml.service(name="Plain")
class Plain:
    runner = bentoml.depends(PlainRunner)

    @bentoml.api  # type: ignore[untyped-decorator]  # bentoml is untyped here
    async def double(self, numbers: list[float]) -> list[float]:
        doubled: list[float] = await self.runner.to_async.double(numbers)
        return doubled
