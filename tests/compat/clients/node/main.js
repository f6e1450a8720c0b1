// Calls a server as Node programs do, through the etcd3 package, and prints "ok" or what is wrong.
'use strict';
const assert = require('node:assert');
const { Etcd3 } = require('etcd3');

async function main(endpoint) {
  const client = new Etcd3({ hosts: endpoint });
  await client.put('node/a').value('1');
  await client.put('node/a').value('2');
  assert.strictEqual(await client.get('node/a').string(), '2');
  assert.strictEqual(await client.get('node/none').string(), null);
  for (const key of ['node/b', 'node/c']) await client.put(key).value(key);
  assert.deepStrictEqual(await client.getAll().prefix('node/').keys(), ['node/a', 'node/b', 'node/c']);
  const sorted = await client.getAll().prefix('node/').sort('Key', 'Descend').limit(2).keys();
  assert.deepStrictEqual(sorted, ['node/c', 'node/b']);
  assert.strictEqual(await client.getAll().prefix('node/').count(), 3);
  const swapped = await client
    .if('node/a', 'Value', '==', '2')
    .then(client.put('node/a').value('3'))
    .else(client.get('node/a'))
    .commit();
  assert.strictEqual(swapped.succeeded, true);
  const refused = await client.if('node/a', 'Version', '==', 0).then(client.put('node/a').value('x')).commit();
  assert.strictEqual(refused.succeeded, false);
  await assert.rejects(client.put('').value('x'), /key is not provided/);
  const gone = await client.delete().key('node/b');
  assert.strictEqual(gone.deleted, '1');
  client.close();
  console.log('ok');
}

main(process.argv[2]).catch((error) => {
  console.log(error);
  process.exitCode = 1;
});
