// Calls a server as Go programs do, through etcd's own client, and prints "ok" or what is wrong.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func must(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func want(holds bool, what string, got any) {
	if !holds {
		fmt.Printf("%s: %v\n", what, got)
		os.Exit(1)
	}
}

func writes(ctx context.Context, c *clientv3.Client) int64 {
	first, err := c.Put(ctx, "go/a", "1")
	must(err)
	second, err := c.Put(ctx, "go/a", "2", clientv3.WithPrevKV())
	must(err)
	want(string(second.PrevKv.Value) == "1", "previous value", second.PrevKv)
	want(second.Header.Revision == first.Header.Revision+1, "revision", second.Header)
	for _, key := range []string{"go/b", "go/c", "go/d"} {
		_, err = c.Put(ctx, key, key)
		must(err)
	}
	gone, err := c.Delete(ctx, "go/d", clientv3.WithPrevKV())
	must(err)
	want(gone.Deleted == 1 && len(gone.PrevKvs) == 1, "deleted", gone)
	return first.Header.Revision
}

func reads(ctx context.Context, c *clientv3.Client, first int64) {
	all, err := c.Get(ctx, "go/", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend))
	must(err)
	want(all.Count == 3 && string(all.Kvs[0].Key) == "go/c", "sorted", all)
	part, err := c.Get(ctx, "go/", clientv3.WithPrefix(), clientv3.WithLimit(2), clientv3.WithKeysOnly())
	must(err)
	want(part.More && len(part.Kvs) == 2 && len(part.Kvs[0].Value) == 0, "limit", part)
	old, err := c.Get(ctx, "go/a", clientv3.WithRev(first), clientv3.WithSerializable())
	must(err)
	want(string(old.Kvs[0].Value) == "1", "old value", old)
	count, err := c.Get(ctx, "go/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	must(err)
	want(count.Count == 3 && len(count.Kvs) == 0, "count", count)
}

func transactions(ctx context.Context, c *clientv3.Client, first int64) {
	done, err := c.Txn(ctx).
		If(clientv3.Compare(clientv3.Value("go/a"), "=", "2"), clientv3.Compare(clientv3.Version("go/x"), "=", 0)).
		Then(clientv3.OpPut("go/x", "new"), clientv3.OpGet("go/x"), clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpGet("go/a")}, nil)).
		Else(clientv3.OpGet("go/a")).Commit()
	must(err)
	want(done.Succeeded && len(done.Responses) == 3, "txn", done)
	want(done.Responses[1].GetResponseRange().Count == 1, "read of its own write", done)
	_, err = c.Txn(ctx).Then(clientv3.OpPut("go/x", "1"), clientv3.OpPut("go/x", "2")).Commit()
	want(errors.Is(err, rpctypes.ErrDuplicateKey), "duplicate", err)
	_, err = c.Put(ctx, "", "v")
	want(errors.Is(err, rpctypes.ErrEmptyKey), "empty key", err)
	_, err = c.Get(ctx, "go/a", clientv3.WithRev(1<<40))
	want(errors.Is(err, rpctypes.ErrFutureRev), "future", err)
	_, err = c.Compact(ctx, first+1)
	must(err)
	_, err = c.Get(ctx, "go/a", clientv3.WithRev(first))
	want(errors.Is(err, rpctypes.ErrCompacted), "compacted", err)
}

func maintenance(ctx context.Context, c *clientv3.Client) {
	members, err := c.MemberList(ctx)
	must(err)
	want(len(members.Members) == 1, "members", members)
	status, err := c.Status(ctx, c.Endpoints()[0])
	must(err)
	want(status.Leader == members.Members[0].ID, "leader", status)
	hash, err := c.HashKV(ctx, c.Endpoints()[0], 0)
	must(err)
	want(hash.Hash != 0, "hash", hash)
	alarms, err := c.AlarmList(ctx)
	must(err)
	want(len(alarms.Alarms) == 0, "alarms", alarms)
	_, err = c.Defragment(ctx, c.Endpoints()[0])
	must(err)
}

func main() {
	c, err := clientv3.New(clientv3.Config{Endpoints: os.Args[1:2], DialTimeout: 5 * time.Second})
	must(err)
	defer c.Close()
	if len(os.Args) > 2 && os.Args[2] == "recipes" {
		(&recipes{client: c}).run()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	first := writes(ctx, c)
	reads(ctx, c, first)
	transactions(ctx, c, first)
	maintenance(ctx, c)
	fmt.Println("ok")
}
