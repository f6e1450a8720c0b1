import io.etcd.jetcd.ByteSequence;
import io.etcd.jetcd.Client;
import io.etcd.jetcd.KV;
import io.etcd.jetcd.kv.GetResponse;
import io.etcd.jetcd.kv.PutResponse;
import io.etcd.jetcd.kv.TxnResponse;
import io.etcd.jetcd.op.Cmp;
import io.etcd.jetcd.op.CmpTarget;
import io.etcd.jetcd.op.Op;
import io.etcd.jetcd.options.DeleteOption;
import io.etcd.jetcd.options.GetOption;
import io.etcd.jetcd.options.PutOption;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;

/** Calls a server as Java programs do, through jetcd, and prints "ok" or what is wrong. */
public class Main {
    static ByteSequence bytes(String text) {
        return ByteSequence.from(text, StandardCharsets.UTF_8);
    }

    static void want(boolean holds, String what, Object got) {
        if (!holds) {
            System.out.println(what + ": " + got);
            System.exit(1);
        }
    }

    static void refused(Future<?> call, String text) throws InterruptedException {
        try {
            want(false, "not refused", call.get());
        } catch (ExecutionException error) {
            want(error.getMessage().contains(text), text, error);
        }
    }

    static long writes(KV kv) throws Exception {
        long first = kv.put(bytes("java/a"), bytes("1")).get().getHeader().getRevision();
        PutOption previous = PutOption.builder().withPrevKV().build();
        PutResponse second = kv.put(bytes("java/a"), bytes("2"), previous).get();
        want(second.getPrevKv().getValue().equals(bytes("1")), "previous value", second);
        want(second.getHeader().getRevision() == first + 1, "revision", second);
        for (String key : List.of("java/b", "java/c", "java/d")) {
            kv.put(bytes(key), bytes(key)).get();
        }
        DeleteOption old = DeleteOption.builder().withPrevKV(true).build();
        var gone = kv.delete(bytes("java/d"), old).get();
        want(gone.getDeleted() == 1 && gone.getPrevKvs().size() == 1, "deleted", gone);
        return first;
    }

    static void reads(KV kv, long first) throws Exception {
        GetOption descending = GetOption.builder().isPrefix(true)
            .withSortField(GetOption.SortTarget.KEY)
            .withSortOrder(GetOption.SortOrder.DESCEND).build();
        GetResponse all = kv.get(bytes("java/"), descending).get();
        want(all.getKvs().get(0).getKey().equals(bytes("java/c")), "sorted", all);
        GetOption two = GetOption.builder().isPrefix(true).withLimit(2).withKeysOnly(true).build();
        GetResponse part = kv.get(bytes("java/"), two).get();
        want(part.isMore() && part.getKvs().size() == 2 && part.getCount() == 3, "limit", part);
        GetOption past = GetOption.builder().withRevision(first).withSerializable(true).build();
        GetResponse old = kv.get(bytes("java/a"), past).get();
        want(old.getKvs().get(0).getValue().equals(bytes("1")), "old value", old);
        GetOption only = GetOption.builder().isPrefix(true).withCountOnly(true).build();
        GetResponse count = kv.get(bytes("java/"), only).get();
        want(count.getCount() == 3 && count.getKvs().isEmpty(), "count", count);
    }

    static void transactions(KV kv, long first) throws Exception {
        TxnResponse done = kv.txn()
            .If(new Cmp(bytes("java/a"), Cmp.Op.EQUAL, CmpTarget.value(bytes("2"))),
                new Cmp(bytes("java/x"), Cmp.Op.EQUAL, CmpTarget.version(0)))
            .Then(Op.put(bytes("java/x"), bytes("new"), PutOption.DEFAULT),
                Op.get(bytes("java/x"), GetOption.DEFAULT))
            .Else(Op.get(bytes("java/a"), GetOption.DEFAULT)).commit().get();
        want(done.isSucceeded(), "txn", done);
        want(done.getGetResponses().get(0).getCount() == 1, "read of its own write", done);
        Op put = Op.put(bytes("java/x"), bytes("1"), PutOption.DEFAULT);
        refused(kv.txn().Then(put, put).commit(), "duplicate key given in txn request");
        refused(kv.put(bytes(""), bytes("v")), "etcdserver: key is not provided");
        kv.compact(first + 1).get();
        GetOption past = GetOption.builder().withRevision(first).build();
        refused(kv.get(bytes("java/a"), past), "required revision has been compacted");
    }

    public static void main(String[] arguments) throws Exception {
        try (Client client = Client.builder().endpoints(arguments[0]).build()) {
            KV kv = client.getKVClient();
            long first = writes(kv);
            reads(kv, first);
            transactions(kv, first);
            var members = client.getClusterClient().listMember().get().getMembers();
            want(members.size() == 1, "members", members);
            var status = client.getMaintenanceClient().statusMember(arguments[0]).get();
            want(status.getLeader() == members.get(0).getId(), "leader", status);
        }
        System.out.println("ok");
        System.exit(0);
    }
}
