"""The Vulkan instance, its devices, and which of them is used.

Required are Vulkan 1.2, timeline semaphores and subgroup arithmetic in compute shaders. Everything
else is asked for and used where it is there.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, Final

from mldb.deferred import dataclass
from mldb.errors import GpuUnavailableError
from mldb.gpu.vulkan import errors as vk_errors

ENVIRONMENT: Final = "MLDB_VK_DEVICE"
LAYER: Final = "VK_LAYER_KHRONOS_validation"
HOST_IMPORT: Final = "VK_EXT_external_memory_host"
MEMORY_FD: Final = "VK_KHR_external_memory_fd"
SEMAPHORE_FD: Final = "VK_KHR_external_semaphore_fd"
SUBGROUP_SIZE: Final = "VK_EXT_subgroup_size_control"

KINDS: Final = ("other", "integrated", "discrete", "virtual", "cpu")
"""VkPhysicalDeviceType by its number."""
PREFERENCE: Final = ("discrete", "integrated", "virtual", "cpu", "other")

NO_DRIVER: Final = (
    "no Vulkan driver was found: install the driver of the GPU, or `mesa-vulkan-drivers` to run "
    "on the CPU; in a container of NVIDIA, NVIDIA_DRIVER_CAPABILITIES must contain `graphics`"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the device allows: bytes, or counts of workgroups and bindings."""

    storage_range: int
    """Bytes of one storage buffer binding."""
    texel_range: int
    """Bytes of one view of texels, of 16 bytes each."""
    allocation: int
    groups: int
    invocations: int
    import_alignment: int
    """Of pointer and size of an imported host memory; 0 where nothing can be imported."""
    heap: int
    """Bytes of the largest device-local heap."""


@dataclass(frozen=True, slots=True, eq=False)
class DeviceInfo:
    """One physical device, before anything is opened."""

    index: int
    name: str
    kind: str
    uuid: bytes
    version: tuple[int, int]
    driver: str
    lanes: int
    """The width of a subgroup."""
    lanes_range: tuple[int, int]
    """Widths that can be asked for; equal where there is no choice."""
    extensions: frozenset[str]
    limits: Limits
    missing: tuple[str, ...]
    """Required features that it lacks."""
    handle: Any

    @property
    def label(self) -> str:
        """Return what messages and statistics call it, such as ``discrete (NVIDIA H100)``."""
        return f"{self.kind} ({self.name})"


def create_instance(api: Any, *, validation: bool = False) -> Any:
    """Return a Vulkan 1.2 instance. Raises GpuUnavailableError when no driver or layer is there."""
    layers = [LAYER] if validation else []
    application = api.VkApplicationInfo(pApplicationName="mldb", apiVersion=_version(1, 2))
    info = api.VkInstanceCreateInfo(pApplicationInfo=application, ppEnabledLayerNames=layers)
    try:
        return api.vkCreateInstance(info, None)
    except api.VkErrorIncompatibleDriver as error:
        raise GpuUnavailableError(NO_DRIVER + _driver_variables()) from error
    except api.VkErrorLayerNotPresent as error:
        raise GpuUnavailableError(
            f"{LAYER} is not installed; it comes with `vulkan-validationlayers`"
        ) from error
    except (api.VkError, api.VkException) as error:
        raise GpuUnavailableError(
            f"Vulkan could not be started: {type(error).__name__}" + _driver_variables()
        ) from error


def _version(major: int, minor: int) -> int:
    return major << 22 | minor << 12


def _driver_variables() -> str:
    """Name the variables that hide drivers, where they are set."""
    names = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES")
    found = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    return f" (set here: {', '.join(found)})" if found else ""


def list_devices(api: Any, instance: Any) -> list[DeviceInfo]:
    """Return what Vulkan sees, in its order. Raises GpuUnavailableError when that is nothing."""
    with vk_errors.translated(api, "list its devices"):
        handles = list(api.vkEnumeratePhysicalDevices(instance))
    if not handles:
        raise GpuUnavailableError(NO_DRIVER + _driver_variables())
    return [_describe(api, index, handle) for index, handle in enumerate(handles)]


def _describe(api: Any, index: int, handle: Any) -> DeviceInfo:
    extensions = frozenset(
        found.extensionName for found in api.vkEnumerateDeviceExtensionProperties(handle, None)
    )
    version = api.vkGetPhysicalDeviceProperties(handle).apiVersion
    major_minor = (version >> 22 & 0x7F, version >> 12 & 0x3FF)
    # Structures of 1.2 may be asked only of a device of 1.2.
    modern = major_minor >= (1, 2)
    found = _properties(api, handle, extensions if modern else frozenset())
    basic, subgroup = found["basic"], found["subgroup"]
    lanes = subgroup.subgroupSize or 1
    width = found["width"]
    choice = (width.minSubgroupSize, width.maxSubgroupSize) if width else (lanes, lanes)
    return DeviceInfo(
        index=index,
        name=api.ffi.string(basic.deviceName).decode(),
        kind=KINDS[basic.deviceType] if basic.deviceType < len(KINDS) else "other",
        uuid=bytes(found["identity"].deviceUUID),
        version=major_minor,
        driver=f"{basic.driverVersion:#x}",
        lanes=lanes,
        lanes_range=choice,
        extensions=extensions,
        limits=_limits(api, handle, found),
        missing=_missing(api, handle, subgroup) if modern else ("Vulkan 1.2",),
        handle=handle,
    )


def _properties(api: Any, handle: Any, extensions: frozenset[str]) -> dict[str, Any]:
    """Ask for all properties at once: a chain of structures that the driver fills."""
    identity = api.VkPhysicalDeviceIDProperties()
    subgroup = api.VkPhysicalDeviceSubgroupProperties(pNext=identity)
    last = api.VkPhysicalDeviceMaintenance3Properties(pNext=subgroup)
    found = {"identity": identity, "subgroup": subgroup, "allocation": last}
    found["host"] = found["width"] = None
    if HOST_IMPORT in extensions:
        last = api.VkPhysicalDeviceExternalMemoryHostPropertiesEXT(pNext=last)
        found["host"] = last
    if SUBGROUP_SIZE in extensions:
        last = api.VkPhysicalDeviceSubgroupSizeControlProperties(pNext=last)
        found["width"] = last
    chain = api.VkPhysicalDeviceProperties2(pNext=last)
    api.vkGetPhysicalDeviceProperties2(handle, chain)
    found["chain"], found["basic"] = chain, chain.properties
    return found


def _limits(api: Any, handle: Any, found: dict[str, Any]) -> Limits:
    basic = found["basic"].limits
    memory = api.vkGetPhysicalDeviceMemoryProperties(handle)
    local = [
        heap.size
        for heap in (memory.memoryHeaps[i] for i in range(memory.memoryHeapCount))
        if heap.flags & api.VK_MEMORY_HEAP_DEVICE_LOCAL_BIT
    ]
    host = found["host"]
    return Limits(
        storage_range=basic.maxStorageBufferRange,
        texel_range=16 * basic.maxTexelBufferElements,
        allocation=found["allocation"].maxMemoryAllocationSize,
        groups=basic.maxComputeWorkGroupCount[0],
        invocations=min(basic.maxComputeWorkGroupInvocations, basic.maxComputeWorkGroupSize[0]),
        import_alignment=host.minImportedHostPointerAlignment if host else 0,
        heap=max(local, default=0),
    )


def _missing(api: Any, handle: Any, subgroup: Any) -> tuple[str, ...]:
    timeline = api.VkPhysicalDeviceTimelineSemaphoreFeatures()
    features = api.VkPhysicalDeviceFeatures2(pNext=timeline)
    api.vkGetPhysicalDeviceFeatures2(handle, features)
    needed = {
        "timelineSemaphore": bool(timeline.timelineSemaphore),
        "subgroup arithmetic": bool(
            subgroup.supportedOperations & api.VK_SUBGROUP_FEATURE_ARITHMETIC_BIT
        ),
        "subgroups in compute shaders": bool(
            subgroup.supportedStages & api.VK_SHADER_STAGE_COMPUTE_BIT
        ),
    }
    return tuple(name for name, there in needed.items() if not there)


def select(devices: list[DeviceInfo], selector: str | int | None = None) -> DeviceInfo:
    """Return the device that is asked for, by index or part of its name, or else the best one.

    Without *selector* the environment variable MLDB_VK_DEVICE is asked. A choice that was made is
    never replaced by another device. Raises GpuUnavailableError with the list of devices.
    """
    asked = os.environ.get(ENVIRONMENT) or None if selector is None else selector
    if asked is None:
        usable = [device for device in devices if not device.missing]
        if not usable:
            raise GpuUnavailableError(f"no Vulkan device can be used: {_listing(devices)}")
        return min(usable, key=lambda device: PREFERENCE.index(device.kind))
    text = str(asked)
    found = [device for device in devices if _fits(device, text)]
    if len(found) != 1:
        what = "fits no device" if not found else "fits several devices"
        source = ENVIRONMENT if selector is None else "the selector"
        raise GpuUnavailableError(
            f"{source}={text!r} {what}; there are {_listing(devices)}. "
            "Name one by its index or by a part of its name"
        )
    if found[0].missing:
        raise GpuUnavailableError(f"{found[0].label} lacks {', '.join(found[0].missing)}")
    return found[0]


def default_device() -> DeviceInfo:
    """Return the device that would be opened without a selector, and open nothing.

    Its handle is of an instance that is gone. Raises GpuUnavailableError.
    """
    api = vk_errors.load_vulkan()
    instance = create_instance(api)
    try:
        return replace(select(list_devices(api, instance)), handle=None)
    finally:
        api.vkDestroyInstance(instance, None)


def _fits(device: DeviceInfo, text: str) -> bool:
    if text.isdecimal():
        return device.index == int(text)
    return text.casefold() in device.name.casefold()


def _listing(devices: list[DeviceInfo]) -> str:
    return "; ".join(
        f"{device.index}: {device.name} ({device.kind})"
        + (f", lacks {', '.join(device.missing)}" if device.missing else "")
        for device in devices
    )
