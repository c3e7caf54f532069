variable "base" {
  type        = string
  description = "Path of the base image, a local file; a qcow2's name ends in .qcow2."
  validation {
    condition     = length(var.base) > 0
    error_message = "The base image is missing."
  }
}

variable "base_format" {
  type        = string
  description = "Format of the base image: qcow2 or raw. It is never probed."
  default     = "qcow2"
  validation {
    condition     = contains(["qcow2", "raw"], var.base_format)
    error_message = "The format of the base image must be qcow2 or raw."
  }
}

variable "use_backing_file" {
  type        = bool
  description = "Make the disk an overlay of the base, which must be a qcow2, instead of a copy."
  default     = false
}

variable "output_directory" {
  type        = string
  description = "Directory, not there yet, that receives disk.qcow2."
  validation {
    condition     = !can(regex(",", var.output_directory)) && length(var.output_directory) > 0
    error_message = "The output directory must be named, without a comma: QEMU takes one for the end of the name."
  }
}

variable "disk_size" {
  type        = number
  description = "Virtual size of the disk in bytes, a multiple of 512, not less than the base's."
  validation {
    condition     = var.disk_size >= 1048576 && var.disk_size % 512 == 0
    error_message = "The disk size must be a multiple of 512 bytes, at least 1 MiB."
  }
}

variable "memory" {
  type        = number
  description = "Memory of the build's guest in MiB."
  default     = 2048
  validation {
    condition     = var.memory >= 256 && floor(var.memory) == var.memory
    error_message = "The memory must be a whole number of MiB, at least 256."
  }
}

variable "cpus" {
  type        = number
  description = "Virtual CPUs of the build's guest."
  default     = 2
  validation {
    condition     = var.cpus >= 1 && floor(var.cpus) == var.cpus
    error_message = "At least one CPU is needed."
  }
}

variable "accelerator" {
  type        = string
  description = "kvm or tcg. It is proven before, never assumed from /dev/kvm."
  default     = "tcg"
  validation {
    condition     = contains(["kvm", "tcg"], var.accelerator)
    error_message = "The accelerator must be kvm or tcg."
  }
}

variable "tcg_thread" {
  type        = string
  description = "How TCG emulates several CPUs: multi, or single, which is safe before QEMU 8.1."
  default     = "single"
  validation {
    condition     = contains(["multi", "single"], var.tcg_thread)
    error_message = "TCG's thread is multi or single."
  }
}

variable "qemu_binary" {
  type        = string
  description = "QEMU for the guest's architecture. What follows belongs to that."
  default     = "qemu-system-x86_64"
}

variable "machine_type" {
  type        = string
  description = "Board of the build's guest. On q35 Debian's cloud kernel sees no CD (no AHCI)."
  default     = "pc"
}

variable "cpu_model" {
  type        = string
  description = "Processor of the build's guest under emulation."
  default     = "max"
}

variable "firmware_code" {
  type        = string
  description = "File with UEFI's code; empty: the guest starts by a BIOS."
  default     = ""
}

variable "firmware_vars" {
  type        = string
  description = "File with UEFI's empty variables."
  default     = ""
}

variable "seed_files" {
  type        = list(string)
  description = "The NoCloud seed: paths of user-data and meta-data."
  validation {
    condition     = length(var.seed_files) >= 2
    error_message = "The seed needs user-data and meta-data."
  }
}

variable "console_log" {
  type        = string
  description = "File that receives the guest's serial console."
  validation {
    condition     = length(var.console_log) > 0 && !can(regex(",", var.console_log))
    error_message = "The console's log must be named, without a comma: QEMU takes one for the end of the name."
  }
}

variable "ssh_username" {
  type        = string
  description = "The build user, made by the seed with sudo and without a password."
  validation {
    condition     = can(regex("^[a-z_][a-z0-9_-]{0,31}$", var.ssh_username))
    error_message = "The build user must be a Unix user name."
  }
}

variable "ssh_private_key_file" {
  type        = string
  description = "The build user's private key, made for this build."
}

variable "ssh_timeout" {
  type        = string
  description = "How long the guest may take to answer ssh."
  default     = "15m"
}

variable "bake_user" {
  type        = bool
  description = "Keep the build user's account, its password locked, instead of deleting it."
  default     = false
}

variable "playbook_file" {
  type        = string
  description = "Path of the playbook."
}

variable "extra_vars_file" {
  type        = string
  description = "JSON or YAML file with Ansible's extra variables."
}

variable "hold_file" {
  type        = string
  description = "After a failure the guest stays up as long as this file exists."
  default     = "/nonexistent"
}
