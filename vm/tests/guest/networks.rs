//! A step has a network of its own: nothing of its guest and of other steps can be reached from it. What the host lets through to it is
//! the host's, and tested with it (`tests/guests.rs`).

use vm::{End, HostNetwork};

use crate::harness::{Cell, Context, STOP, Vm};

/// The guest's own address, at which buildkitd listens in these tests.
const GUEST: &str = "10.0.2.15";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "boots virtual machines: make test-vm"]
async fn a_step_reaches_nothing_of_its_guest_and_of_other_steps() {
    let mut cell = Cell::new().await;
    // Nothing leaves QEMU, whatever a step tries.
    let HostNetwork::User { restricted, .. } = &mut cell.machine.network else { unreachable!("QEMU's own network") };
    *restricted = true;
    let (mut vm, _) = cell.boot().await;

    let seen = said(&vm, &format!("{OWN_SERVER}; ip -4 addr")).await;
    assert!(seen.contains("my own"), "its own loopback is there: {seen}");
    assert!(seen.contains("inet 10.0.2.1"), "it has an address: {seen}");
    assert!(!seen.contains(&format!("inet {GUEST}")), "of its own: {seen}");
    for address in [GUEST, "127.0.0.1"] {
        let seen = said(&vm, &format!("nc -w 5 {address} 1234 </dev/null && echo OPEN; echo tried")).await;
        assert!(seen.contains("tried") && !seen.contains("OPEN"), "buildkitd at {address}: {seen}");
    }
    another_step_is_out_of_reach(&vm).await;
    the_guests_network_is_not_to_be_had(&vm).await;
    assert_eq!(vm.guest.stop(STOP).await.unwrap(), End::Orderly);
}

/// Two at once: one listens until the other has tried every address that a step can have by now.
async fn another_step_is_out_of_reach(vm: &Vm) {
    let listens = "RUN (while :; do echo q | nc -l -p 4000; done) & ip -4 addr | grep -o 'inet 10[0-9.]*'; sleep 300\n";
    let listening = vm.builds.begin(Context::new(listens), "inet 10.0.2.1").await;
    let tries = "for n in $(seq 129 140); do \
                 ip -4 addr | grep -q \"10.0.2.$n/\" || (nc -w 5 10.0.2.$n 4000 </dev/null && echo OPEN at $n) & \
                 done; wait; echo tried";
    let seen = said(vm, tries).await;
    assert!(seen.contains("tried") && !seen.contains("OPEN"), "{seen}");
    listening.abort();
}

async fn the_guests_network_is_not_to_be_had(vm: &Vm) {
    let built = vm.builds.build(&Context::new("RUN --network=host echo OPEN\n")).await;
    let refused = built.result.map(drop).unwrap_err();
    assert!(refused.message.contains("network.host is not allowed"), "{refused}");
}

/// What a step prints that runs these commands.
async fn said(vm: &Vm, commands: &str) -> String {
    let built = vm.builds.build(&Context::new(&format!("RUN {commands}; true\n"))).await;
    let output = built.output();
    built.result.unwrap_or_else(|error| panic!("{error}: {output}"));
    output
}

/// A server that is asked on the loopback of its own step.
const OWN_SERVER: &str = "(echo my own | nc -l -p 4001) & \
                          for i in $(seq 50); do nc -w 5 127.0.0.1 4001 </dev/null && break; usleep 100000; done";
