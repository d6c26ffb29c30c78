//! A process that makes system calls on sockets for a test, see `lb_tests::sockets`.

fn main() -> anyhow::Result<()> {
    lb_tests::sockets::serve()
}
