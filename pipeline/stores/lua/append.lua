-- after: run, incarnation, add
-- Append one entry, unless a body in it was appended before, or there is nothing in it but the keys of bodies.
-- KEYS: stream, books, idempotency, what was left out of bodies.
-- ARGV: events, event count, dead letters, dead letter count, retention of keys in ms, number of keys, key digests..., and as
-- many texts that say which rows of that body were not admitted ('': all were); there are none of these where all were of all.
-- Reply: the id, '0-0' of none; or, of the keys that were seen before, digest and text by turns.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return redis.error_reply('NOSTREAM')
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local repeated, keys = {}, tonumber(ARGV[6])
local function keep() -- a write in either case: who waits for replicas waits until they have what was written last
  redis.call('PEXPIRE', KEYS[3], ARGV[5])
  redis.call('PEXPIRE', KEYS[4], ARGV[5])
end
for i = 7, 6 + keys do
  local seen = redis.call('ZSCORE', KEYS[3], ARGV[i])
  if seen and now - tonumber(seen) <= tonumber(ARGV[5]) then
    table.insert(repeated, ARGV[i])
    table.insert(repeated, redis.call('HGET', KEYS[4], ARGV[i]) or '')
  end
end
if #repeated > 0 then
  keep()
  return repeated
end
-- The first write must be one that adds: a full Redis refuses only that, and lets what follows a write pass.
for i = 7, 6 + keys do
  redis.call('ZADD', KEYS[3], now, ARGV[i])
  local left = ARGV[i + keys]
  if left and left ~= '' then
    redis.call('HSET', KEYS[4], ARGV[i], left)
  end
end
if keys > 0 then
  if redis.call('EXISTS', KEYS[4]) == 1 then
    for _, key in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now - ARGV[5])) do
      redis.call('HDEL', KEYS[4], key)
    end
  end
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now - ARGV[5])
  keep()
end
if ARGV[2] + ARGV[4] == 0 then
  return '0-0'
end
redis.call('HINCRBY', KEYS[2], 'accepted', ARGV[2] + ARGV[4])
local current, new = incarnation(KEYS[2])
if new then
  redis.call('HSET', KEYS[2], 'incarnation', current)
end
return add(KEYS[1], 'e', ARGV[1], 'n', ARGV[2], 'x', ARGV[3], 'm', ARGV[4], 'i', current)
