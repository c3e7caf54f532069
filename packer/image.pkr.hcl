# A cloud image and an Ansible playbook make a disk: Packer boots the image
# under QEMU, Ansible configures it, clean.sh removes every trace of the build.
# The variables are in variables.pkr.hcl; diskforge's provision stage sets them
# in a file. `packer build` with such a file and the same environment works too.

packer {
  required_version = ">= 1.9.4"
  required_plugins {
    qemu = {
      source  = "github.com/hashicorp/qemu"
      version = "= 1.0.9"
    }
    ansible = {
      source  = "github.com/hashicorp/ansible"
      version = "= 1.0.3"
    }
  }
}

source "qemu" "image" {
  # The base is a local file whose checksum was verified when it was fetched.
  # Its format is stated, by its name for a qcow2 (which Packer then copies as
  # it is) and by an argument for everything else: a probed format lets the
  # content of a raw disk pass for a qcow2 with any backing file it likes.
  disk_image   = true
  iso_url      = var.base
  iso_checksum = "none"
  format       = "qcow2"
  qemu_img_args {
    convert = var.base_format == "qcow2" ? [] : ["-f", var.base_format]
  }

  # An overlay of the base instead of a copy, where the caller flattens it.
  use_backing_file = var.use_backing_file

  output_directory = var.output_directory
  vm_name          = "disk.qcow2"
  disk_size        = "${var.disk_size}b"
  skip_compaction  = true # the sparsify stage converts, once

  disk_interface     = "virtio"
  disk_discard       = "unmap"
  disk_detect_zeroes = "unmap"
  # What a crash of the host may lose is thrown away anyway.
  disk_cache = "unsafe"

  accelerator = var.accelerator
  # What is built for x86-64-v2 needs more than QEMU's own default, qemu64.
  cpu_model    = var.accelerator == "kvm" ? "host" : var.cpu_model
  qemu_binary  = var.qemu_binary
  machine_type = var.machine_type
  memory       = var.memory
  cpus         = var.cpus
  net_device   = "virtio-net"
  headless     = true

  # UEFI, where these are set; its variables go with this build.
  efi_firmware_code = var.firmware_code
  efi_firmware_vars = var.firmware_vars

  # NoCloud seed: the build user and its key.
  cd_files = var.seed_files
  cd_label = "cidata"

  disable_vnc            = true # nothing is typed
  ssh_username           = var.ssh_username
  ssh_private_key_file   = var.ssh_private_key_file
  ssh_timeout            = var.ssh_timeout
  ssh_handshake_attempts = 1000 # cloud-init makes the user while sshd already answers

  ssh_disable_agent_forwarding = true

  qemuargs = [
    # The plugin's own forward listens on every interface.
    ["-netdev", "user,id=user.0,hostfwd=tcp:127.0.0.1:{{ .SSHHostPort }}-:22"],
    ["-device", "virtio-net,netdev=user.0,romfile="], # no boot from the network
    ["-device", "virtio-rng-pci"],                    # sshd waits for entropy
    ["-serial", "file:${var.console_log}"],
    ["-vnc", "none"],
    ["-display", "none"],
    # SeaBIOS writes to the serial console, too, why it finds nothing to boot.
    ["-machine", "type=${var.machine_type},graphics=off"],
    ["-accel", var.accelerator == "kvm" ? "kvm" : "tcg,thread=${var.tcg_thread}"],
    # A full disk fails the guest's writes; by default QEMU would stop the guest
    # for ever.
    ["-global", "virtio-blk-device.werror=report"],
  ]

  shutdown_command = "sudo -n sh /tmp/diskforge-clean.sh finish '${var.ssh_username}' ${var.bake_user}"
  shutdown_timeout = "10m"
}

build {
  sources = ["source.qemu.image"]

  provisioner "ansible" {
    playbook_file = var.playbook_file
    user          = var.ssh_username
    use_proxy     = false # the guest's ssh is reachable: a proxy would only cost time
    use_sftp      = true  # keeps the plugin from forcing scp, which OpenSSH 9 changed
    # Never values: other users of the host can read a command line.
    extra_arguments = ["--extra-vars", "@${var.extra_vars_file}"]
  }

  provisioner "shell" {
    script          = "${path.root}/scripts/clean.sh"
    remote_path     = "/tmp/diskforge-clean.sh"
    execute_command = "sudo -n sh '{{ .Path }}' clean '${var.ssh_username}' ${var.bake_user}"
    skip_clean      = true # the script deletes itself when it has finished
  }

  # The guest of a failed build stays up as long as this file exists.
  error-cleanup-provisioner "shell-local" {
    inline = ["while [ -e '${var.hold_file}' ]; do sleep 1; done"]
  }
}
